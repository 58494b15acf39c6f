-- Cached answers, and which invalidations there were.
-- KEYS: invalidations, answer, ...    ARGV: an epoch, for where there is none
-- Returns epoch, number of the last invalidation, and for each an answer or nothing.
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'last', 0)
end
local state = redis.call('HMGET', KEYS[1], 'epoch', 'last')
local found = {state[1], state[2]}
for index = 2, #KEYS do
  found[index + 1] = redis.call('GET', KEYS[index])
end
return found
