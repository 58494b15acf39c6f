-- Some of the leases that are settled, or presumed so, and are called less than a name: requests are named by time.
-- KEYS: leases    ARGV: cursor, how many to look at, the name
-- Returns the next cursor ("0" at the end), and for each lease its name and its record as JSON.
local found = redis.call('HSCAN', KEYS[1], ARGV[1], 'COUNT', ARGV[2])
local settled = {}
for i = 1, #found[2], 2 do
  local name, record = found[2][i], found[2][i + 1]
  local state = string.sub(record, 1, 1)
  if (state == 's' or state == 'p') and name < ARGV[3] then
    settled[#settled + 1] = name
    settled[#settled + 1] = cjson.encode(cmsgpack.unpack(string.sub(record, 2)))
  end
end
return {found[1], settled}
