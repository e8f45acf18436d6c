-- Removes an entry, refuses the tickets that were taken for it, and tells the others. A full server takes no new
-- generation; without any of them, no ticket fits either.
-- KEYS: the entry, the bucket's generations
-- ARGV: the generation to move; what it becomes; channel; message
if type(redis.pcall('HSET', KEYS[2], ARGV[1], ARGV[2])) == 'table' then
  redis.call('DEL', KEYS[2])
end
local count = redis.call('UNLINK', KEYS[1])
redis.call('PUBLISH', ARGV[3], ARGV[4])
return count
