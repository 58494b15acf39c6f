-- Whether the caller is the one that does something that is done once in a while, by whoever comes first.
-- Key: what it is. Arguments: who asks, and for how many ms nobody else does it.

return redis.call('set', KEYS[1], ARGV[1], 'nx', 'px', ARGV[2]) and 1 or 0
