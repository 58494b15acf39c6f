-- Keeps an answer, unless its epoch is over.
-- KEYS: invalidations, answer    ARGV: epoch, milliseconds, answer
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
return 1
