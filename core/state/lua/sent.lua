-- Note that an attempt is about to be sent.
-- KEYS: epoch, leases    ARGV: epoch, lease
-- Returns 1, 0 for a lease that ran out, or -1 where the state is lost.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return -1
end
local lease = redis.call('HGET', KEYS[2], ARGV[2])
local state = lease and string.sub(lease, 1, 1)
if state == 'o' then
  redis.call('HSET', KEYS[2], ARGV[2], 't' .. string.sub(lease, 2))
end
return (state == 'o' or state == 't') and 1 or 0
