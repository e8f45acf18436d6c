-- Admits a request if its weight has room in the window that ends now, by the server's clock.
-- KEYS: what was admitted lately, a sorted set of weight:token by microseconds; the sum of their weights
-- ARGV: the window in microseconds; the limit; the weight; the token, or '' to ask without being admitted
-- Gives whether it is admitted (0 or 1), the weight that is left, and the microseconds until there is room.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')[2]
if newest and tonumber(newest) > now then
  now = tonumber(newest) -- the server's clock was set back
end
local window, limit, weight = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local function weight_of(member)
  return tonumber(string.match(member, '^%d+'))
end

local oldest_that_counts = string.format('%.0f', now - window)
local gone = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', oldest_that_counts)
local sum = newest and tonumber(redis.call('GET', KEYS[2]) or false)
if not sum then -- nothing counts any more, or the sum alone was evicted
  sum = 0
  for _, member in ipairs(redis.call('ZRANGE', KEYS[1], 0, -1)) do
    sum = sum + weight_of(member)
  end
end
if #gone > 0 then
  for _, member in ipairs(gone) do
    sum = sum - weight_of(member)
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', oldest_that_counts)
end

local member = string.format('%d:%s', weight, ARGV[4])
local is_admitted = 0
if ARGV[4] ~= '' and redis.call('ZSCORE', KEYS[1], member) then
  is_admitted = 1 -- asked again, because the reply was lost
elseif sum + weight <= limit then
  is_admitted = 1
  if ARGV[4] ~= '' then
    redis.call('ZADD', KEYS[1], string.format('%.0f', now), member)
    sum = sum + weight
  end
end
local milliseconds = math.ceil(window / 1000)
redis.call('SET', KEYS[2], sum, 'PX', milliseconds)
redis.call('PEXPIRE', KEYS[1], milliseconds)

local wait, missing = 0, sum + weight - limit
if is_admitted == 0 then
  local entries = redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
  for at = 1, #entries, 2 do
    missing = missing - weight_of(entries[at])
    if missing <= 0 then
      wait = tonumber(entries[at + 1]) + window - now
      break
    end
  end
end
return { is_admitted, limit - sum, string.format('%.0f', wait) }
