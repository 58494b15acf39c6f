-- After a loss: an instance puts its leases in again, into the state that is being built or was built without it.
-- KEYS: recovery, registered, leases, expiry, epoch
-- ARGV: epoch, term in ms, prefix of accounts, instance ("" while more of its leases come), then leases: name, record as JSON
-- Returns 0 where it is another epoch by now.
local building = redis.call('GET', KEYS[1]) == ARGV[1]
if not building and redis.call('GET', KEYS[5]) ~= ARGV[1] then
  return 0
end
local now = redis.call('TIME')
local untilms = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[2]
for i = 5, #ARGV, 2 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then
    local given = cjson.decode(ARGV[i + 1])
    local open = given.state == 'o' or given.state == 't'
    local lease = {0}
    for j = 1, #given.amounts, 2 do
      local account = ARGV[3] .. given.amounts[j]
      redis.call('HINCRBY', account, open and 'reserved' or 'settled', given.amounts[j + 1])
      lease[#lease + 1] = account
      lease[#lease + 1] = given.amounts[j + 1]
    end
    redis.call('HSET', KEYS[3], ARGV[i], given.state .. cmsgpack.pack(lease))
    if open then
      redis.call('ZADD', KEYS[4], untilms, ARGV[i])
    end
  end
end
if building and ARGV[4] ~= '' then
  redis.call('SADD', KEYS[2], ARGV[4])
end
return 1
