#!lua flags=allow-key-locking
-- Counts one attempt under several limits, all of them or none.
-- KEYS one for each limit   ARGV 1 now in ms   2 3… for each: ms between two attempts in the long run, ms of burst
-- Returns for each the moment in ms at which its budget would be whole again, counting this attempt.
local now, arrivals, refused = tonumber(ARGV[1]), {}, false
local known = redis.call('MGET', unpack(KEYS))
for i = 1, #KEYS do
  arrivals[i] = math.max(tonumber(known[i] or '0'), now) + tonumber(ARGV[2 * i])
  refused = refused or arrivals[i] - now > tonumber(ARGV[2 * i + 1])
end
if not refused then
  for i = 1, #KEYS do redis.call('SET', KEYS[i], string.format('%.0f', arrivals[i]), 'PX', arrivals[i] - now) end
end
return arrivals
