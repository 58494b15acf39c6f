-- End leases that ran out: release those that were not sent, count the others as spent at what was reserved.
-- KEYS: leases, expiry    ARGV: how many at most
-- Returns for each one that was sent: its name and its record.
local now = redis.call('TIME')
local over = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now[1] * 1000 + math.floor(now[2] / 1000), 'LIMIT', 0, ARGV[1])
local presumed = {}
for _, name in ipairs(over) do
  local known = redis.call('HGET', KEYS[1], name)
  local state = known and string.sub(known, 1, 1)
  if state == 'o' or state == 't' then
    local lease = cmsgpack.unpack(string.sub(known, 2))
    for i = 2, #lease, 2 do
      if lease[i + 1] ~= '0' then
        redis.call('HINCRBY', lease[i], 'reserved', '-' .. lease[i + 1])
        if state == 't' then
          redis.call('HINCRBY', lease[i], 'settled', lease[i + 1])
        end
      end
    end
    if state == 't' then
      redis.call('HSET', KEYS[1], name, 'p' .. string.sub(known, 2))
      presumed[#presumed + 1] = name
      presumed[#presumed + 1] = cjson.encode(lease)
    else
      redis.call('HDEL', KEYS[1], name)
    end
  end
  redis.call('ZREM', KEYS[2], name)
end
return {#over, presumed}
