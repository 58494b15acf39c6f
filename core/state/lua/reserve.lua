-- Reserve the first level that every account has, or nothing.
-- KEYS: epoch, leases, expiry, then the accounts
-- ARGV: lease, then in one text: epoch, term in ms, levels, slack, and for each account: limit, the amount of each level
-- Returns {"ok" or "known" or "little", level, standings before in one text}, {"unopened", index...} or {"lost"}.
-- Money is up to 63 bits and Lua counts in doubles: of what does not fit exactly, whole dollars and the nano-dollars
-- beyond are summed apart.
local call = redis.call

local function add(hi, lo, text, sign)
  if #text <= 15 then
    return hi, lo + sign * text
  end
  if string.sub(text, 1, 1) == '-' then
    sign, text = -sign, string.sub(text, 2)
  end
  return hi + sign * string.sub(text, 1, -10), lo + sign * string.sub(text, -9)
end

local words = {}
for word in string.gmatch(ARGV[2], '[^ ]+') do
  words[#words + 1] = word
end
if call('GET', KEYS[1]) ~= words[1] then
  return {'lost'}
end
local accounts, levels, slack = #KEYS - 3, tonumber(words[3]), words[4]
local width = levels + 1
local standings, unopened = {}, {}
for i = 1, accounts do
  local has = call('HMGET', KEYS[3 + i], 'written', 'settled', 'reserved', 'extra', 'opened')
  local at = i * 4
  if not has[5] then
    unopened[#unopened + 1] = i - 1
  end
  standings[at - 3], standings[at - 2] = has[1] or '0', has[2] or '0'
  standings[at - 1], standings[at] = has[3] or '0', has[4] or '0'
end
if #unopened > 0 then
  return {'unopened', unpack(unopened)}
end

local known = call('HGET', KEYS[2], ARGV[1])
local level = 0
if known then
  level = cmsgpack.unpack(string.sub(known, 2))[1]
else
  for i = 1, accounts do
    local at, has = (i - 1) * width + 5, (i - 1) * 4
    local hi, lo = add(0, 0, words[at], 1)
    hi, lo = add(hi, lo, standings[has + 1], -1)
    hi, lo = add(hi, lo, standings[has + 2], -1)
    hi, lo = add(hi, lo, standings[has + 3], -1)
    hi, lo = add(hi, lo, standings[has + 4], 1)
    if level == 0 and levels > 1 and words[at + 1] * slack > hi * 1e9 + lo then
      level = 1
    end
    while level < levels do
      local left_hi, left_lo = add(hi, lo, words[at + 1 + level], -1)
      if left_hi + math.floor(left_lo / 1e9) >= 0 then
        break
      end
      level = level + 1
    end
    if level == levels then
      return {'little', level, table.concat(standings, ' ')}
    end
  end
  local lease = {level}
  for i = 1, accounts do
    local amount = words[(i - 1) * width + 6 + level]
    call('HINCRBY', KEYS[3 + i], 'reserved', amount)
    lease[i * 2], lease[i * 2 + 1] = KEYS[3 + i], amount
  end
  call('HSET', KEYS[2], ARGV[1], 'o' .. cmsgpack.pack(lease))
  local now = call('TIME')
  call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000) + words[2], ARGV[1])
end
return {known and 'known' or 'ok', level, table.concat(standings, ' ')}
