#!lua flags=allow-key-locking
-- Raises counters that are below the ledger, as after a loss of data. Never lowers one.
-- KEYS 1 the subject's day   2 open holds   3 everybody's spending today   4 correction of the month
--      5… earlier days of the month
-- ARGV from the ledger: 1 messages   2 spent   3 burst   4 today   5 month   6 now in ms   7 ttl of the subject's day in s
--      8 ttl of everybody's day in s   9… open holds of running calls
local h = redis.call('HMGET', KEYS[1], 'n', 'c', 't')
local function larger(field, known) return string.format('%.0f', math.max(tonumber(field or '0'), tonumber(known))) end
redis.call('HSET', KEYS[1], 'n', larger(h[1], ARGV[1]), 'c', larger(h[2], ARGV[2]), 't', larger(h[3], ARGV[3]))
if not h[1] then redis.call('EXPIRE', KEYS[1], ARGV[7]) end
local days = redis.call('MGET', unpack(KEYS, 3))
local today = larger(days[1], ARGV[4])
redis.call('SET', KEYS[3], today, 'EX', ARGV[8])
local month = tonumber(today)
for i = 2, #KEYS - 2 do month = month + tonumber(days[i] or '0') end
if month < tonumber(ARGV[5]) then
  local rest = tonumber(days[2] or '0') + tonumber(ARGV[5]) - month
  redis.call('SET', KEYS[4], string.format('%.0f', rest), 'EX', ARGV[8])
end
for i = 9, #ARGV do redis.call('ZADD', KEYS[2], 'NX', ARGV[6], ARGV[i]) end
return 0
