#!lua flags=allow-key-locking
-- Gives one message back, once, however often it is asked.
-- KEYS 1 the subject's day   ARGV 1 request   Returns the messages that remain taken.
if redis.call('HDEL', KEYS[1], 'r:' .. ARGV[1]) == 0 then
  return tonumber(redis.call('HGET', KEYS[1], 'n') or '0')
end
return redis.call('HINCRBY', KEYS[1], 'n', -1)
