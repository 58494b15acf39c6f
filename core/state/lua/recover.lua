-- Begin to build the state anew, or learn how far that is.
-- KEYS: epoch, recovery    ARGV: the epoch to begin
-- Returns {"is", epoch} or {"building", epoch}.
local epoch = redis.call('GET', KEYS[1])
if epoch then
  return {'is', epoch}
end
local building = redis.call('GET', KEYS[2])
if not building then
  redis.call('SET', KEYS[2], ARGV[1])
  building = ARGV[1]
end
return {'building', building}
