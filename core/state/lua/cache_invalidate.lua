-- Takes out every cached answer with one of these marks, by a number that answers of before do not have.
-- KEYS: invalidations    ARGV: an epoch, for where there is none, most marks, mark, ...
-- Returns epoch and number.
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1])
local last = redis.call('HINCRBY', KEYS[1], 'last', 1)
for index = 3, #ARGV do
  redis.call('HSET', KEYS[1], 'mark:' .. ARGV[index], last)
end
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[2]) then
  -- Too many to remember apart: one that stands for all of them.
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'last', last, 'mark:all', last)
end
return {epoch, last}
