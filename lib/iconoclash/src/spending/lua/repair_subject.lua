#!lua flags=allow-key-locking
-- Sets a subject's day, unless it has changed since it was read.
-- KEYS 1 the subject's day   ARGV 1 2 messages and spending as read   3 4 new values
-- Returns 1 if the values were set
local h = redis.call('HMGET', KEYS[1], 'n', 'c')
if h[1] ~= ARGV[1] or (h[2] or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'n', ARGV[3], 'c', ARGV[4])
return 1
