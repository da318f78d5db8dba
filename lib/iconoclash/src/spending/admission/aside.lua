#!lua flags=allow-key-locking
-- Holds money for a call that nobody asked for, where there is room; it counts as no message. Safe to repeat.
-- KEYS 1 the subject's day   2 open holds   3 everybody's spending today   4 what this month's days lack
--      5… this month's days before today
-- ARGV 1 the hold   2 the open hold   3 now in ms   4 what the subject may spend   5 everybody a day   6 everybody a month
-- Returns 1, or 0 where there is no room or Redis does not know
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
