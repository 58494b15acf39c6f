-- Writes the records of breakers that are still as the caller knows them. KEYS[1] is a hash of all records by name,
-- with when it was begun and when it last changed under the empty name. Arguments, three for each breaker:
--   its name, the record as it is known (empty: none), the new one (empty: remove it)
-- Answer for each: 1 if it was written, else 0, and the record as it is there otherwise.

local time = redis.call('time')
local now = time[1] .. string.format('%06d', time[2])
local answer, written = {}, false
for index = 1, #ARGV, 3 do
    local name, known, new = ARGV[index], ARGV[index + 1], ARGV[index + 2]
    local there = redis.call('hget', KEYS[1], name) or ''
    if there == known then
        if new == '' then
            redis.call('hdel', KEYS[1], name)
        else
            redis.call('hset', KEYS[1], name, new)
        end
        written = true
        answer[#answer + 1], answer[#answer + 2] = 1, ''
    else
        answer[#answer + 1], answer[#answer + 2] = 0, there
    end
end
if written then
    local stamp = redis.call('hget', KEYS[1], '') or now
    redis.call('hset', KEYS[1], '', string.match(stamp, '^%d+') .. ' ' .. now)
end
return answer
