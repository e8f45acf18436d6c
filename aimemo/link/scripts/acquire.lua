-- Takes a lease if nobody holds it. The fencing number is never below the server's time in microseconds, so
-- that it grows even if the last one is lost.
-- KEYS: the lease, the last fencing number
-- ARGV: token; milliseconds
-- Gives the fencing number and the token, or 0 and who holds the lease.
local holder = redis.call('GET', KEYS[1])
if holder then
  return { 0, holder }
end
local time = redis.call('TIME')
local fence = math.max((tonumber(redis.call('GET', KEYS[2])) or 0) + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[2], string.format('%.0f', fence))
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return { fence, ARGV[1] }
