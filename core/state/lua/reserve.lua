-- Reserve the first level that every account has, or nothing.
-- KEYS: epoch, leases, expiry, then the accounts
-- ARGV: lease, then in one text: epoch, term in ms, levels, slack, the limit of each account, and the amount of each
--   level, once where it is the same for every account, else for each account in turn
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

local words, count = {}, 0
for word in string.gmatch(ARGV[2], '%S+') do
  count = count + 1
  words[count] = word
end
if call('GET', KEYS[1]) ~= words[1] then
  return {'lost'}
end
local accounts, levels, slack = #KEYS - 3, tonumber(words[3]), words[4]
local first = 5 + accounts
local width = count == first - 1 + levels and 0 or levels
local standings, unopened = {}, nil
for i = 1, accounts do
  local has = call('HMGET', KEYS[3 + i], 'written', 'settled', 'reserved', 'extra', 'opened')
  local at = i * 4
  if not has[5] then
    unopened = unopened or {'unopened'}
    unopened[#unopened + 1] = i - 1
  end
  standings[at - 3], standings[at - 2] = has[1] or '0', has[2] or '0'
  standings[at - 1], standings[at] = has[3] or '0', has[4] or '0'
end
if unopened then
  return unopened
end

local level = 0
for i = 1, accounts do
  local at, has, limit = first + (i - 1) * width, i * 4, words[4 + i]
  local written, settled, reserved, extra = standings[has - 3], standings[has - 2], standings[has - 1], standings[has]
  local hi, lo = 0, nil
  if #limit <= 15 and #written <= 15 and #settled <= 15 and #reserved <= 15 and #extra <= 15 then
    lo = limit - written - settled - reserved + extra
  else
    hi, lo = add(0, 0, limit, 1)
    hi, lo = add(hi, lo, written, -1)
    hi, lo = add(hi, lo, settled, -1)
    hi, lo = add(hi, lo, reserved, -1)
    hi, lo = add(hi, lo, extra, 1)
  end
  if level == 0 and levels > 1 and words[at] * slack > hi * 1e9 + lo then
    level = 1
  end
  while level < levels do
    local left_hi, left_lo = add(hi, lo, words[at + level], -1)
    if left_hi + math.floor(left_lo / 1e9) >= 0 then
      break
    end
    level = level + 1
  end
  if level == levels then
    break
  end
end

local known
if level == levels then
  known = call('HGET', KEYS[2], ARGV[1])
  if not known then
    return {'little', level, table.concat(standings, ' ')}
  end
else
  local lease = {level}
  for i = 1, accounts do
    lease[i * 2], lease[i * 2 + 1] = KEYS[3 + i], words[first + (i - 1) * width + level]
  end
  if call('HSETNX', KEYS[2], ARGV[1], 'o' .. cmsgpack.pack(lease)) == 0 then
    known = call('HGET', KEYS[2], ARGV[1])
  end
end
if known then
  return {'known', cmsgpack.unpack(string.sub(known, 2))[1], table.concat(standings, ' ')}
end
for i = 1, accounts do
  call('HINCRBY', KEYS[3 + i], 'reserved', words[first + (i - 1) * width + level])
end
local now = call('TIME')
call('ZADD', KEYS[3], now[1] * 1000 + math.floor(now[2] / 1000) + words[2], ARGV[1])
return {'ok', level, table.concat(standings, ' ')}
