-- Moves a generation. A full server takes no new value; without any of them, no ticket fits either.
-- KEYS: the bucket's generations
-- ARGV: the generation to move; what it becomes
if type(redis.pcall('HSET', KEYS[1], ARGV[1], ARGV[2])) == 'table' then
  redis.call('DEL', KEYS[1])
end
return 1
