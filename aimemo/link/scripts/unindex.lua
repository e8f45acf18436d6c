-- Removes from the index what no longer is an entry.
-- KEYS: index by tag, index by expiry, entries
-- ARGV: for each entry, its member of the index
for i, member in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[2 + i]) == 0 then
    redis.call('ZREM', KEYS[1], member)
    redis.call('ZREM', KEYS[2], member)
  end
end
return 1
