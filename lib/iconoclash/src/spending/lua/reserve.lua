#!lua flags=allow-key-locking
-- Admits one message, or refuses it. A refusal writes nothing. Safe to repeat for one request, also with another plan or
-- prompt: the new hold replaces the old one.
-- KEYS 1 the subject's day: hash of n (messages), c (micro-dollars, held or settled), t (burst), r:<request> (its hold)
--      2 open holds   3 the subject's day before   4 everybody's spending today   5 revoked session
--      6 lowest token version of the user   7 plan   8 spending limits   9 correction of the month
--      10… earlier days of the month
-- ARGV 1 request   2 now in ms   3 token version   4 plan, '' if unknown   5 ttl of the plan in s, 0 not to cache it
--      6 maximum prompt bytes   7 '<day> <subject> <request> '   8 spending limits as in KEYS 8, '' if unknown
--      9 burst interval in ms   10 burst tolerance in ms   11 ttl of the subject's day in s
--      12… for guest, free, pro: messages a day, micro-dollars per million prompt tokens, longest reply × 10^6
-- Returns {code, plan, hold, n, spent, today, month, wait in ms}; the codes are those of decision.rs
local ADMITTED, REVOKED, QUOTA, BURST, SPEND, DAY, MONTH, UNKNOWN = 0, 1, 2, 3, 4, 5, 6, 7
local PLANS = {guest = 1, free = 2, pro = 3}
local req, now = ARGV[1], tonumber(ARGV[2])

local known = redis.call('MGET', unpack(KEYS, 4))
if known[2] or (known[3] and tonumber(ARGV[3]) < tonumber(known[3])) then return {REVOKED, 0, 0, 0, 0, 0, 0, 0} end
local plan = PLANS[ARGV[4]] or PLANS[known[4]] or 2
local limits = ARGV[8] ~= '' and ARGV[8] or known[5]
if not limits or not known[1] then return {UNKNOWN, plan, 0, 0, 0, 0, 0, 0} end
local caps = {}
for cap in string.gmatch(limits, '%d+') do caps[#caps + 1] = tonumber(cap) end
local today, month = tonumber(known[1]), 0
for i = 6, #KEYS - 3 do month = month + tonumber(known[i] or '0') end
month = month + today

local h = redis.call('HMGET', KEYS[1], 'n', 'c', 't', 'r:' .. req)
local held = tonumber(h[4] or '0')
local first = not h[1]
local n = tonumber(h[1] or '0') - (h[4] and 1 or 0)
local c = first and 0 or tonumber(h[2] or '0') - held
local at = 12 + (plan - 1) * 3
local limit, rate, reply = tonumber(ARGV[at]), tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
local hold = math.ceil((tonumber(ARGV[6]) * rate + reply) / 1000000)
local function answer(code, wait)
  return {code, plan, hold, n, c, today, month, wait or 0}
end

if n >= limit then return answer(QUOTA) end
local t = tonumber(h[3] or '0')
if not h[4] then
  if not h[3] then t = tonumber(redis.call('HGET', KEYS[3], 't') or '0') end
  t = math.max(t, now) + tonumber(ARGV[9])
  if t - now > tonumber(ARGV[10]) then return answer(BURST, t - now - tonumber(ARGV[10])) end
end
if c + hold > caps[plan] then return answer(SPEND) end
if today - held + hold > caps[4] then return answer(DAY) end
if month - held + hold > caps[5] then return answer(MONTH) end

n, c = n + 1, c + hold
redis.call('HSET', KEYS[1], 'n', n, 'c', string.format('%.0f', c), 't', string.format('%.0f', t), 'r:' .. req, hold)
if first then redis.call('EXPIRE', KEYS[1], ARGV[11]) end
if hold ~= held then
  redis.call('INCRBY', KEYS[4], hold - held)
  if h[4] then redis.call('ZREM', KEYS[2], ARGV[7] .. held) end
end
if not h[4] or hold ~= held then redis.call('ZADD', KEYS[2], now, ARGV[7] .. hold) end
if ARGV[4] ~= '' and ARGV[5] ~= '0' and known[4] ~= ARGV[4] then redis.call('SET', KEYS[7], ARGV[4], 'EX', ARGV[5]) end
if ARGV[8] ~= '' and known[5] ~= ARGV[8] then redis.call('SET', KEYS[8], ARGV[8], 'EX', 60) end
today, month = today + hold - held, month + hold - held
return answer(ADMITTED)
