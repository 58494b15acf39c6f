-- An attempt is over: what it cost takes the place of what was reserved.
-- KEYS: leases, expiry, then the accounts    ARGV: lease, cost
-- Returns in one text for each account: written, settled, reserved, extra, and in another one what was presumed spent of
-- it until now. Nothing if it was done.
local call = redis.call
local known = call('HGET', KEYS[1], ARGV[1])
local state = known and string.sub(known, 1, 1)
if state == 's' then
  return {}
end
local field = state == 'p' and 'settled' or 'reserved'
local reserved = {}
if known then
  local lease = cmsgpack.unpack(string.sub(known, 2))
  for i = 2, #lease, 2 do
    reserved[lease[i]] = lease[i + 1]
  end
end
local standings, presumed, settled = {}, {}, {0}
for i = 3, #KEYS do
  local account = KEYS[i]
  local amount = reserved[account] or '0'
  reserved[account] = nil
  if amount ~= '0' then
    call('HINCRBY', account, field, '-' .. amount)
  end
  if ARGV[2] ~= '0' then
    call('HINCRBY', account, 'settled', ARGV[2])
  end
  settled[i * 2 - 4], settled[i * 2 - 3] = account, ARGV[2]
  presumed[i - 2] = state == 'p' and amount or '0'
  local has, at = call('HMGET', account, 'written', 'settled', 'reserved', 'extra'), (i - 3) * 4
  for one = 1, 4 do
    standings[at + one] = has[one] or '0'
  end
end
-- What was reserved beyond the accounts that are charged.
for account, amount in pairs(reserved) do
  if amount ~= '0' then
    call('HINCRBY', account, field, '-' .. amount)
  end
end
call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] == '0' then
  call('HDEL', KEYS[1], ARGV[1])
else
  call('HSET', KEYS[1], ARGV[1], 's' .. cmsgpack.pack(settled))
end
return {table.concat(standings, ' '), table.concat(presumed, ' ')}
