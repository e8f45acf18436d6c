-- Ends or prolongs a worker's claim of a request.
-- KEYS: the request, a hash
-- ARGV: the worker's token; milliseconds; the result, or nothing; anything if it needs no claim
-- Milliseconds of 0 give the claim up. Gives 1, or 0 if the request is another worker's, or is done.
local state = redis.call('HMGET', KEYS[1], 'token', 'result')
if state[2] then
  return state[1] == ARGV[1] and ARGV[3] == state[2] and 1 or 0
end
local owner = state[1] or (ARGV[4] and ARGV[1])
if owner ~= ARGV[1] then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 1
end
if ARGV[3] then
  redis.call('HSET', KEYS[1], 'token', ARGV[1], 'result', ARGV[3])
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
