#!lua flags=allow-key-locking
-- Replaces a hold by the cost, once, however often it is called.
-- KEYS 1 the subject's day   2 open holds   3 everybody's spending of that day
-- ARGV 1 open hold   2 its amount   3 cost   4 1 if the message no longer counts, else 0   5 ttl of the day in s
--      6 burst to return with the message, in ms
if redis.call('ZREM', KEYS[2], ARGV[1]) == 0 then return 0 end
local delta = tonumber(ARGV[3]) - tonumber(ARGV[2])
if ARGV[4] ~= '0' then
  redis.call('HINCRBY', KEYS[1], 'n', -1)
  if ARGV[6] ~= '0' then redis.call('HINCRBY', KEYS[1], 't', '-' .. ARGV[6]) end
end
-- A day that Redis lost starts with this value alone; it gets the usual ttl, and the next message restores it.
if redis.call('HINCRBY', KEYS[1], 'c', delta) == delta then redis.call('EXPIRE', KEYS[1], ARGV[5]) end
redis.call('INCRBY', KEYS[3], delta)
return 1
