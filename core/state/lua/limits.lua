-- Counts against rates and parallel requests, everything or nothing. One counter a key; arguments:
--   [1] now in ms, empty for Redis's own time  [2] steps of a window  [3] length of a step in ms  [4] length of a lease in ms
--   then three for each key: what to do, a number or a lease, the limit
--     charge <amount> 0         count in a window whatever stands there
--     keep <lease> 0            begin the term of a lease anew
--     end <lease> 0             end a lease
--     window <amount> <limit>   count if it fits; an amount of 0 fits while less than the limit is used
--     lease <lease> <limit>     begin a lease if it fits
--     look 0 <limit>            count nothing in a window
--     held 0 <limit>            begin no lease
-- Answer: 1 if all that may be refused was done, else 0; then for each key used, ms until one more fits, ms until empty.
--
-- A window is a hash: n = its sum, o = its oldest step, l = its latest, and the amount of each step under its number.
-- Parallel requests are a sorted set of leases by expiry.

local now = tonumber(ARGV[1])
if not now then
    local time = redis.call('time')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local steps, step_ms, term = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local current = math.floor(now / step_ms)

local function amounts(key, first, last)
    local names = {}
    for step = first, last do
        names[#names + 1] = string.format('%.0f', step)
    end
    return names, #names > 0 and redis.call('hmget', key, unpack(names)) or {}
end

-- Sum, oldest and latest step of what still counts; the rest is removed.
local function read(key)
    local found = redis.call('hmget', key, 'n', 'o', 'l')
    if not found[1] then
        return 0, current, current
    end
    local sum, oldest, latest = tonumber(found[1]), tonumber(found[2]), tonumber(found[3])
    local first = current - steps
    if latest < first then
        redis.call('del', key)
        return 0, current, current
    end
    if oldest < first then
        local names, gone = amounts(key, oldest, first - 1)
        for index = 1, #names do
            sum = sum - (tonumber(gone[index]) or 0)
        end
        redis.call('hdel', key, unpack(names))
        redis.call('hset', key, 'n', sum, 'o', first)
        oldest = first
    end
    return sum, oldest, latest
end

local function add(key, amount, oldest, latest)
    local step = math.max(current, latest)
    redis.call('hincrby', key, string.format('%.0f', step), amount)
    redis.call('hincrby', key, 'n', amount)
    redis.call('hset', key, 'o', oldest, 'l', step)
    redis.call('pexpire', key, (steps + 4) * step_ms)
end

local function free_at(key, excess, oldest, latest)
    local names, found = amounts(key, oldest, latest)
    for index = 1, #names do
        excess = excess - (tonumber(found[index]) or 0)
        if excess <= 0 then
            return (oldest + index + steps) * step_ms
        end
    end
    return (latest + 1 + steps) * step_ms
end

local fits, answer, windows = 1, {0}, {}
for index, key in ipairs(KEYS) do
    local what, argument, limit = ARGV[index * 3 + 2], ARGV[index * 3 + 3], tonumber(ARGV[index * 3 + 4])
    local used, wait, reset = 0, 0, 0
    if what == 'keep' then
        redis.call('zadd', key, now + term, argument)
        redis.call('pexpire', key, term)
    elseif what == 'end' then
        redis.call('zrem', key, argument)
    elseif what == 'lease' or what == 'held' then
        redis.call('zremrangebyscore', key, '-inf', now)
        used = redis.call('zcard', key)
        if used >= limit then
            -- Nobody knows when one will end.
            wait = 1000
            fits = what == 'lease' and 0 or fits
        end
    else
        local oldest, latest
        used, oldest, latest = read(key)
        if what == 'charge' then
            add(key, argument, oldest, latest)
        else
            windows[index] = {oldest, latest}
            if used > 0 then
                reset = (latest + 1 + steps) * step_ms - now
            end
            local over = used + math.max(tonumber(argument), 1) - limit
            if over > 0 then
                if what == 'window' then
                    fits = 0
                end
                wait = free_at(key, over, oldest, latest) - now
            end
        end
    end
    answer[#answer + 1], answer[#answer + 2], answer[#answer + 3] = used, wait, reset
end

answer[1] = fits
if fits == 1 then
    for index, key in ipairs(KEYS) do
        local what, argument = ARGV[index * 3 + 2], ARGV[index * 3 + 3]
        if what == 'lease' then
            redis.call('zadd', key, now + term, argument)
            redis.call('pexpire', key, term)
            answer[index * 3 - 1] = answer[index * 3 - 1] + 1
        elseif what == 'window' and tonumber(argument) > 0 then
            add(key, argument, windows[index][1], windows[index][2])
            answer[index * 3 - 1] = answer[index * 3 - 1] + tonumber(argument)
            answer[index * 3 + 1] = (math.max(current, windows[index][2]) + 1 + steps) * step_ms - now
        end
    end
end
return answer
