-- Keeps an entry, unless an invalidation came after its ticket was taken.
-- KEYS: the entry, the bucket's generations, its index by tag, its index by expiry
-- ARGV: envelope; milliseconds to live (0: for ever); channel; message; the generation to move, because older
--       answers must not be kept any more, or ""; what it becomes; number of generations; their names; what they
--       were; members of the index
local count = tonumber(ARGV[7])
if count > 0 then
  local now = redis.call('HMGET', KEYS[2], unpack(ARGV, 8, 7 + count))
  for i = 1, count do
    if (now[i] or '') ~= ARGV[7 + count + i] then
      return 0
    end
  end
end
local tells = ARGV[5] ~= '' or redis.call('EXISTS', KEYS[1]) == 1
if ARGV[5] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[5], ARGV[6])
end
local life = tonumber(ARGV[2])
if #ARGV > 7 + 2 * count then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  local expiry = life > 0 and string.format('%.0f', now + life) or '+inf'
  for _, dead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', string.format('%.0f', now), 'LIMIT', 0, 100)) do
    redis.call('ZREM', KEYS[3], dead)
    redis.call('ZREM', KEYS[4], dead)
  end
  for i = 8 + 2 * count, #ARGV do
    redis.call('ZADD', KEYS[3], 0, ARGV[i])
    redis.call('ZADD', KEYS[4], expiry, ARGV[i])
  end
end
if life > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
if tells then
  redis.call('PUBLISH', ARGV[3], ARGV[4])
end
return 1
