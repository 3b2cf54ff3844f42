#!lua flags=allow-oom
-- Closes tags for a write: notes the write as in flight, drops the versions and the entries.
-- Memory that has run out must not keep a write from invalidating, hence the flag.
-- Answers for each tag how many entries its index held, and 1 if they were detached to be dropped
-- later.
-- KEYS: of each tag its version, writers, keys, and the name to detach them under; of one tag alone
-- in a Cluster.
-- ARGV: the write or '' for none, its deadline in ms from now, how many entries to drop at once in
-- all, time to live in ms.
local time = redis.call('TIME')
local deadline = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2]
local room = tonumber(ARGV[3])
local answer = {}
for i = 1, #KEYS, 4 do
  local version, writers, keys, detached = KEYS[i], KEYS[i + 1], KEYS[i + 2], KEYS[i + 3]
  if ARGV[1] ~= '' then
    redis.call('ZADD', writers, deadline, ARGV[1])
    redis.call('PEXPIRE', writers, ARGV[2])
  end
  redis.call('DEL', version)
  local count, later = redis.call('SCARD', keys), 0
  if count > room then
    redis.call('RENAME', keys, detached)
    redis.call('PEXPIRE', detached, ARGV[4])
    later = 1
  elseif count > 0 then
    room = room - count
    -- An entry's key begins as all keys of its tag do, and ends with its member.
    local base = string.sub(keys, 1, -#'keys' - 1)
    local dead = redis.call('SMEMBERS', keys)
    for j, member in ipairs(dead) do
      dead[j] = base .. member
    end
    dead[#dead + 1] = keys
    redis.call('UNLINK', unpack(dead))
  end
  answer[#answer + 1] = {count, later}
end
return answer
