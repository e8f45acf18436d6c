-- Gives back a lease that is still held.
-- KEYS: the lease
-- ARGV: what the lease says; what to leave in its place, or ""; milliseconds that it stays
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
if ARGV[2] == '' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
end
return 1
