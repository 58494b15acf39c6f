-- What was invalidated, where that is more than the caller knows.
-- KEYS: invalidations    ARGV: an epoch, for where there is none, epoch and number that the caller knows
-- Returns epoch, number, and then names of marks and their numbers in turn.
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'last', 0)
end
local state = redis.call('HMGET', KEYS[1], 'epoch', 'last')
if state[1] == ARGV[2] and state[2] == ARGV[3] then
  return {state[1], state[2]}
end
local found = {state[1], state[2]}
local all = redis.call('HGETALL', KEYS[1])
for index = 1, #all, 2 do
  if string.sub(all[index], 1, 5) == 'mark:' then
    found[#found + 1] = string.sub(all[index], 6)
    found[#found + 1] = all[index + 1]
  end
end
return found
