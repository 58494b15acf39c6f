-- Takes the right to get an answer, or keeps it.
-- KEYS: lock, answer    ARGV: whose it shall be, milliseconds, 1 to take it though there is an answer
-- Returns 1 if it is the caller's, 0 if another's, 2 if the answer is there already.
local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then
  return 0
end
if not owner and ARGV[3] ~= '1' and redis.call('EXISTS', KEYS[2]) == 1 then
  return 2
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
