#!lua flags=allow-key-locking
-- Puts what a message cost in the place of its hold, once, however often it is asked.
-- KEYS 1 the subject's day   2 open holds   3 everybody's spending of that day
-- ARGV 1 the open hold   2 its amount   3 the cost   4 messages to give back, 0 or 1   5 seconds to keep the day
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 0 end
local delta = tonumber(ARGV[3]) - tonumber(ARGV[2])
if ARGV[4] ~= '0' then redis.call('HINCRBY', KEYS[1], 'n', -1) end
-- A day that was lost in between begins with this alone; it is kept no longer than others, and raised by the next send.
if redis.call('HINCRBY', KEYS[1], 'c', delta) == delta then redis.call('EXPIRE', KEYS[1], ARGV[5]) end
redis.call('INCRBY', KEYS[3], delta)
return 1
