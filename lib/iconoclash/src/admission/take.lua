#!lua flags=allow-key-locking
-- Takes one message of a subject's day, or refuses without writing anything.
-- KEYS 1 the subject's day: hash of n (messages taken) and r:<request> (one field for each)
--      2 the subject's plan, as last read from Postgres
-- ARGV 1 request   2 plan, '' where the caller does not know it yet   3 4 5 limits of guest, free and pro
--      6 seconds to keep the day   7 seconds to keep the plan, 0 not to
-- Returns {code, n}: 0 admitted, 1 over the quota, 2 over the quota of a plan that was only assumed.
local taken = redis.call('HMGET', KEYS[1], 'n', 'r:' .. ARGV[1])
local n = tonumber(taken[1] or '0')
if taken[2] then return {0, n} end
local plan = ARGV[2]
if plan == '' then plan = redis.call('GET', KEYS[2]) or '' end
local limits = {guest = ARGV[3], free = ARGV[4], pro = ARGV[5]}
if n >= tonumber(limits[plan] or limits.free) then return {plan == '' and 2 or 1, n} end
redis.call('HSET', KEYS[1], 'n', n + 1, 'r:' .. ARGV[1], 1)
if n == 0 then redis.call('EXPIRE', KEYS[1], ARGV[6]) end
if ARGV[2] ~= '' and ARGV[7] ~= '0' then redis.call('SET', KEYS[2], plan, 'EX', ARGV[7]) end
return {0, n + 1}
