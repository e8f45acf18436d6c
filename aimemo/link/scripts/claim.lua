-- Claims a request for one worker, unless it is done or another one is at it.
-- KEYS: the request, a hash
-- ARGV: the worker's token; milliseconds that the claim lasts; the fingerprint of the payload
-- Gives 'ours'; 'theirs'; 'other' (payload); or 'done' and the result
local state = redis.call('HMGET', KEYS[1], 'token', 'payload', 'result')
if state[2] and state[2] ~= ARGV[3] then
  return { 'other' }
end
if state[3] then
  return { 'done', state[3] }
end
if state[1] and state[1] ~= ARGV[1] then
  return { 'theirs' }
end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'payload', ARGV[3])
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return { 'ours' }
