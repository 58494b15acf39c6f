-- All records of breakers, as breaker_swap.lua writes them, unless they are those that the caller knows.
-- Argument: the stamp of what is known. Answer: Redis's time in µs, the stamp, and if it is another the whole hash.

local time = redis.call('time')
local now = time[1] .. string.format('%06d', time[2])
local stamp = redis.call('hget', KEYS[1], '') or ''
if stamp == ARGV[1] then
    return {now, stamp}
end
return {now, stamp, redis.call('hgetall', KEYS[1])}
