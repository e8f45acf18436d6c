-- Takes a lease if nobody holds it, or if an invalidation came since it was taken: its holder computes what is no
-- longer wanted. The fencing number is never below the server's time in microseconds, so that it grows even if the
-- last one is lost.
-- KEYS: the lease, the last fencing number, the bucket's generations
-- ARGV: token; milliseconds; names of the generations that the holder's work depends on
-- Gives the fencing number and what the lease says now, or 0 and what it says ("-": the last one kept nothing).
local now = ''
if #ARGV > 2 then
  local values = redis.call('HMGET', KEYS[3], unpack(ARGV, 3))
  for i = 1, #values do
    values[i] = values[i] or ''
  end
  now = redis.sha1hex(table.concat(values, '/'))
end
local holder = redis.call('GET', KEYS[1])
local last = tonumber(redis.call('GET', KEYS[2]) or false)
local is_ours = holder == ARGV[1] .. now
if is_ours and last then -- asked again, because the reply was lost
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
  return { last, holder }
end
if holder and not is_ours and (holder == '-' or now == '' or string.sub(holder, -#now) == now) then
  return { 0, holder }
end
local time = redis.call('TIME')
local fence = math.max((last or 0) + 1, time[1] * 1000000 + time[2])
redis.call('SET', KEYS[2], string.format('%.0f', fence), 'EX', 86400)
redis.call('SET', KEYS[1], ARGV[1] .. now, 'PX', ARGV[2])
return { fence, ARGV[1] .. now }
