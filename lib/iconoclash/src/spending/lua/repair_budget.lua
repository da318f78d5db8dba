#!lua flags=allow-key-locking
-- Sets everybody's spending, unless it has changed since it was read.
-- KEYS 1 today   2 correction of the month   ARGV 1 2 as read, '' for none   3 4 new values   5 ttl in s
-- Returns 1 if the values were set
local known = redis.call('MGET', KEYS[1], KEYS[2])
if (known[1] or '') ~= ARGV[1] or (known[2] or '') ~= ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'EX', ARGV[5])
redis.call('SET', KEYS[2], ARGV[4], 'EX', ARGV[5])
return 1
