-- The state is whole once every instance that lives has registered.
-- KEYS: epoch, recovery, registered    ARGV: epoch, instances that live
-- Returns the instances that are missing; none where the state is whole now.
if redis.call('GET', KEYS[2]) ~= ARGV[1] then
  return {}
end
local missing = {}
for i = 2, #ARGV do
  if redis.call('SISMEMBER', KEYS[3], ARGV[i]) == 0 then
    missing[#missing + 1] = ARGV[i]
  end
end
if #missing == 0 then
  redis.call('SET', KEYS[1], ARGV[1])
  redis.call('DEL', KEYS[2], KEYS[3])
end
return missing
