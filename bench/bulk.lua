--- Bulk work: images, files and searches against the tools that do the same to plain directories.
--
--   make bench BENCH_FLAGS="--only bulk"
--
-- Called by bench/run.lua with its small tools. Every contestant takes its turn in each round; told is the
-- median over the rounds of the ratio to the peer's time in the same round.

local bough = require "bough"
local root_debian = require "spec.support.root_debian"

local M = {}

local function timed(now, fn)
  local started = now()
  fn()
  return now() - started
end

-- One peer and ours, taking turns.
local function duel(t, title, rounds, peer, ours)
  local ratios, peers, own = {}, {}, {}
  for round = 1, rounds do
    local a, b
    if round % 2 == 1 then
      a, b = timed(t.now, function() peer.run(round) end), timed(t.now, function() ours.run(round) end)
    else
      b, a = timed(t.now, function() ours.run(round) end), timed(t.now, function() peer.run(round) end)
    end
    peers[round], own[round], ratios[round] = a, b, b / a
    if peer.after then peer.after(round) end
    if ours.after then ours.after(round) end
  end
  t.say("  %-44s %8.3f s   %s %8.3f s   ratio %.2f", title, t.median(own), peer.name, t.median(peers),
    t.median(ratios))
  return t.median(ratios)
end

local function peak(pid)
  local file = io.open(("/proc/%s/status"):format(pid))
  local status = file and file:read "a" or ""
  if file then file:close() end
  return (tonumber(status:match "VmHWM:%s*(%d+)") or 0) / 1024
end

local function reset_peak(pid)
  local file = io.open(("/proc/%s/clear_refs"):format(pid), "w")
  if file then
    file:write "5"
    file:close()
  end
end

local function quoted(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

local function write_tree(dir, count, salt)
  assert(os.execute("mkdir -p " .. quoted(dir)))
  local made = {}
  for i = 1, count do
    local below = ("%s/d%02d"):format(dir, i % 100)
    if not made[below] then
      made[below] = true
      assert(os.execute("mkdir " .. quoted(below)))
    end
    local file = assert(io.open(("%s/f%05d"):format(below, i), "w"))
    file:write(("%s %d\n"):format(salt, i):rep(64 + i % 64))
    file:close()
  end
end

--- Runs them all.
---@param t table now, say, median, scaled, sh, dir, verdict, quick: the tools of bench/run.lua
---@param box bough.engine
function M.run(t, box)
  local dir = t.dir
  t.say "\nBulk work"
  local small = root_debian.tarball(t.quick and "small" or "large")
  local tar = dir .. "/root.tar"
  t.sh(("zstd -dqf %s -o %s"):format(quoted(small), tar))
  local size = io.open(tar):seek "end"
  t.say("  a Debian root of %.0f MB as a tar", size / 1e6)
  local rounds = t.quick and 1 or 5

  local image
  local function drop() image = nil; collectgarbage(); box:gc() end
  local ratio = duel(t, "import of the tar", rounds, {
    name = "tar x",
    run = function(i) t.sh(("mkdir %s/x%d && tar -C %s/x%d -xf %s"):format(dir, i, dir, i, tar)) end,
    after = function(i) t.sh(("rm -rf %s/x%d"):format(dir, i)) end,
  }, { run = function() image = box.images:import(tar) end, after = drop })
  t.verdict("import of a tar against tar x", ratio, 1.2)
  ratio = duel(t, "import of the tar, zstd", rounds, {
    name = "tar x",
    run = function(i)
      t.sh(("mkdir %s/x%d && tar -C %s/x%d --zstd -xf %s"):format(dir, i, dir, i, quoted(small)))
    end,
    after = function(i) t.sh(("rm -rf %s/x%d"):format(dir, i)) end,
  }, { run = function() image = box.images:import(small) end, after = drop })
  t.verdict("import of a tar.zst against tar x", ratio, 1.2)

  image = box.images:import(tar)
  t.sh(("mkdir %s/plain && tar -C %s/plain -xf %s"):format(dir, dir, tar))
  image:grep("warm the caches, please", { fixed = true })
  t.sh(("grep -rq 'warm the caches, please' %s/plain; true"):format(dir))
  for _, case in ipairs {
    { "grep, a fixed string", "-rIF", "Debian GNU/Linux", { fixed = true } },
    { "grep, a regular expression", "-rIE", "[a-z]+_init\\(struct [a-z]+", {} },
  } do
    local opts = { max_total = 1000000 }
    for name, value in pairs(case[4]) do opts[name] = value end
    ratio = duel(t, case[1], rounds + 2, {
      name = "grep ",
      run = function()
        t.sh(("grep %s -- %s %s/plain >%s/out || true"):format(case[2], quoted(case[3]), dir, dir))
      end,
    }, { run = function() image:grep(case[3], opts) end })
    t.verdict(case[1] .. " against grep -r", ratio, 1.2)
  end

  local count = t.scaled(10000)
  local base = box.images:use "busybox"
  local made
  -- new content each time: known content would not be sent again
  for i = 1, rounds do write_tree(("%s/in%d"):format(dir, i), count, "round " .. i) end
  ratio = duel(t, ("upload of %d small files"):format(count), rounds, {
    name = "cp -a",
    run = function(i) t.sh(("cp -a %s/in%d %s/copy%d"):format(dir, i, dir, i)) end,
    after = function(i) t.sh(("rm -rf %s/in%d %s/copy%d"):format(dir, i, dir, i)) end,
  }, {
    run = function(i) made = base:apply_files { ["/data"] = bough.dir(("%s/in%d"):format(dir, i)) } end,
    after = drop,
  })
  t.verdict("upload of small files against cp -a", ratio, 1.2)
  write_tree(dir .. "/again", count, "again")
  made = base:apply_files { ["/data"] = bough.dir(dir .. "/again") }
  t.say("  %-44s %8.3f s", "the same files again, known already", timed(t.now, function()
    made = base:apply_files { ["/data"] = bough.dir(dir .. "/again") }
  end))
  ratio = duel(t, "download of them", rounds, {
    name = "cp -a",
    run = function(i) t.sh(("cp -a %s/again %s/copy%d"):format(dir, dir, i)) end,
    after = function(i) t.sh(("rm -rf %s/copy%d"):format(dir, i)) end,
  }, {
    run = function(i) made:download("/data", ("%s/back%d"):format(dir, i)) end,
    after = function(i) t.sh(("rm -rf %s/back%d"):format(dir, i)) end,
  })
  t.verdict("download of small files against cp -a", ratio, 1.2)

  local big = dir .. "/big"
  t.sh(("head -c %d /dev/urandom >%s"):format(t.scaled(256 << 20), big))
  made = base:apply_files { ["/big"] = big }
  ratio = duel(t, "read of a 256 MiB file", rounds, {
    name = "io.open",
    run = function()
      local file = io.open(big, "rb")
      local _ = file:read "a"
      file:close()
      collectgarbage()
    end,
  }, { run = function() local _ = made:read "/big"; collectgarbage() end })
  t.verdict("read against io.open", ratio, 1.2)
  t.say("  %-44s %8.1f us", "read of a small file, over and over", timed(t.now, function()
    for _ = 1, 1000 do made:read "/etc/passwd" end
  end) * 1000)

  -- flat memory
  local sparse = dir .. "/sparse"
  local gigabytes = t.quick and 1 or 5
  t.sh(("truncate -s %dG %s && printf end | dd of=%s bs=1 seek=%d conv=notrunc status=none"):format(
    gigabytes, sparse, sparse, (gigabytes << 30) - 3))
  local keeper = box:info().keeper_pid
  collectgarbage()
  reset_peak "self"
  reset_peak(keeper)
  local before, keeper_before = peak "self", peak(keeper)
  local into = timed(t.now, function() made = base:apply_files { ["/sparse"] = sparse } end)
  local out = timed(t.now, function() made:download("/sparse", dir .. "/sparse.out") end)
  t.say("  %d GB sparse file: in %.2f s, out %.2f s; peak memory of the host %.1f, then %.1f MiB, of the"
    .. " keeper %.1f, then %.1f MiB", gigabytes, into, out, before, peak "self", keeper_before, peak(keeper))
  t.sh(("cmp -s %s %s.out"):format(sparse, sparse))
end

return M
