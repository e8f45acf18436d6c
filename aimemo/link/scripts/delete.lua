-- Removes an entry, refuses the tickets that were taken for it, and tells the others.
-- KEYS: the entry, the bucket's generations
-- ARGV: the generation to move; what it becomes; channel; message
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
local count = redis.call('UNLINK', KEYS[1])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return count
