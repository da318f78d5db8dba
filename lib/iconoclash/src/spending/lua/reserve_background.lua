#!lua flags=allow-key-locking
-- Reserves a hold for a background call, if there is room. It does not count as a message. Safe to repeat.
-- KEYS 1 the subject's day   2 open holds   3 everybody's spending today   4 correction of the month
--      5… earlier days of the month
-- ARGV 1 hold   2 open hold   3 now in ms   4 subject's limit a day   5 everybody's a day   6 everybody's a month
-- Returns 1, or 0 without room or where Redis does not know
local spent, days = redis.call('HGET', KEYS[1], 'c'), redis.call('MGET', unpack(KEYS, 3))
if not spent or not days[1] then return 0 end
if redis.call('ZSCORE', KEYS[2], ARGV[2]) then return 1 end
local hold, month = tonumber(ARGV[1]), 0
for i = 1, #KEYS - 2 do month = month + tonumber(days[i] or '0') end
if tonumber(spent) + hold > tonumber(ARGV[4]) then return 0 end
if tonumber(days[1]) + hold > tonumber(ARGV[5]) or month + hold > tonumber(ARGV[6]) then return 0 end
redis.call('HINCRBY', KEYS[1], 'c', hold)
redis.call('INCRBY', KEYS[3], hold)
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
return 1
