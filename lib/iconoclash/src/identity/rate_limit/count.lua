#!lua flags=allow-key-locking
-- Counts one attempt against several limits (GCRA): all of them count it, or none.
-- KEYS  one for each limit
-- ARGV  1: now in ms; then for each limit its emission interval and its burst tolerance, in ms
-- Returns each limit's theoretical arrival time in ms, including this attempt.
local now, tats, rejected = tonumber(ARGV[1]), {}, false
local stored = redis.call('MGET', unpack(KEYS))

for i = 1, #KEYS do
  tats[i] = math.max(tonumber(stored[i] or '0'), now) + tonumber(ARGV[2 * i])
  rejected = rejected or tats[i] - now > tonumber(ARGV[2 * i + 1])
end

if not rejected then
  for i = 1, #KEYS do
    redis.call('SET', KEYS[i], string.format('%.0f', tats[i]), 'PX', tats[i] - now)
  end
end
return tats
