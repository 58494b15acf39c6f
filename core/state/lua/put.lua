-- Take over balances of the store where they are newer, and let go of the leases whose cost is in them.
-- KEYS: epoch, leases, expiry, then the accounts
-- ARGV: what they open accounts in: nothing "", any state "*", or the state of an epoch; for each account: written,
--   extra, version, when to forget it in ms (0 = never); then the leases
local opens = ARGV[1] == '*' or (ARGV[1] ~= '' and redis.call('GET', KEYS[1]) == ARGV[1])
local accounts = #KEYS - 3
for i = 1, accounts do
  local account, at = KEYS[3 + i], (i - 1) * 4 + 1
  local version = tonumber(redis.call('HGET', account, 'version') or -1)
  if tonumber(ARGV[at + 3]) > version then
    redis.call('HSET', account, 'written', ARGV[at + 1], 'extra', ARGV[at + 2], 'version', ARGV[at + 3])
    if ARGV[at + 4] ~= '0' then
      redis.call('PEXPIREAT', account, ARGV[at + 4])
    end
  end
  if opens then
    redis.call('HSET', account, 'opened', '1')
  end
end
for i = accounts * 4 + 2, #ARGV do
  local known = redis.call('HGET', KEYS[2], ARGV[i])
  if known then
    local state, lease = string.sub(known, 1, 1), cmsgpack.unpack(string.sub(known, 2))
    local field = (state == 'o' or state == 't') and 'reserved' or 'settled'
    for j = 2, #lease, 2 do
      if redis.call('EXISTS', lease[j]) == 1 and lease[j + 1] ~= '0' then
        redis.call('HINCRBY', lease[j], field, '-' .. lease[j + 1])
      end
    end
    redis.call('HDEL', KEYS[2], ARGV[i])
    redis.call('ZREM', KEYS[3], ARGV[i])
  end
end
return 1
