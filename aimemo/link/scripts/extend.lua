-- Renews a lease that is still held.
-- KEYS: the lease
-- ARGV: what the lease says; milliseconds
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
