-- Keep leases for another term.
-- KEYS: expiry    ARGV: term in ms, then leases
local now = redis.call('TIME')
local untilms = now[1] * 1000 + math.floor(now[2] / 1000) + ARGV[1]
for i = 2, #ARGV do
  redis.call('ZADD', KEYS[1], 'XX', untilms, ARGV[i])
end
return #ARGV - 1
