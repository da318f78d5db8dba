#!lua flags=allow-key-locking
-- Takes one attempt back from several limits (GCRA) that have counted it.
-- KEYS  one for each limit
-- ARGV  1: now in ms; then for each limit its emission interval in ms
-- Returns each limit's theoretical arrival time in ms, without this attempt.
local now, tats = tonumber(ARGV[1]), {}
local stored = redis.call('MGET', unpack(KEYS))

for i = 1, #KEYS do
  tats[i] = tonumber(stored[i] or '0') - tonumber(ARGV[i + 1])
  if tats[i] > now then
    redis.call('SET', KEYS[i], string.format('%.0f', tats[i]), 'PX', tats[i] - now)
  else
    redis.call('DEL', KEYS[i])
  end
end
return tats
