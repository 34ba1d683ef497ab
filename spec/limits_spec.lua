--- Limits, each run into from inside. What is in force where is told by `engine:info().limits`; each test
--- knows what to expect of each mechanism, so that none is skipped.

local bough = require "bough"
local lfs = require "lfs"
local system = require "system"
local arena = require "spec.support.arena"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

local try = arena.try
local MB = 1 << 20

describe("limits", function()
  local attack, home, box, force, base

  setup(function()
    attack = arena.compile()
    home = scratch.store()
    box = bough.open(home)
    force = box:info().limits -- what each is enforced by
    base = box.images:import(arena.tree(attack))
  end)

  teardown(function()
    if box then box:close() end
  end)

  local function in_group(name) return force[name]:find "^cgroup" ~= nil end

  -- Processes of this machine that have `mark` among their arguments.
  local function alive(mark)
    local pids = {}
    for pid in lfs.dir "/proc" do
      local file = pid:find "^%d" and io.open("/proc/" .. pid .. "/cmdline", "rb")
      if file then
        if (file:read "a" or ""):find(mark, 1, true) then pids[#pids + 1] = pid end
        file:close()
      end
    end
    return pids
  end

  local marks = 0
  local function mark()
    marks = marks + 1
    return ("mark-%d-%d"):format(io.open("/proc/self/stat"):read "n", marks)
  end

  -- A sandbox still does its work, and soon.
  local function responsive()
    local started = system.monotime()
    assert.equal("here\n", base:run { "echo", "here", disposable = true }.stdout)
    assert.is_true(system.monotime() - started < 10)
  end

  it("say what they are enforced by", function()
    local known = { memory = "cgroup rlimit", pids = "cgroup rlimit none", cpu = "cgroup affinity",
      disk = "tmpfs none", files = "rlimit" }
    for name, mechanisms in pairs(known) do
      assert.match(force[name]:match "^%a+", mechanisms, 1, true)
    end
  end)

  describe("pids", function()
    local function held(seen, what)
      if force.pids == "none" then -- root without control groups: nothing counts its processes
        assert.equal("ok", seen[what])
      else
        assert.equal("EAGAIN", seen[what])
        assert.is_true(math.abs(tonumber(seen.made) - 19) <= 1, seen.made)
      end
    end

    it("stop forks", function()
      held(try(base, { "forks", "60" }, { limits = { pids = 20 } }), "fork")
    end)

    it("count threads too", function()
      held(try(base, { "threads", "60" }, { limits = { pids = 20 } }), "thread")
    end)

    it("are of one sandbox: the next has its own", function()
      local other <close> = base:start { "/attack", "bomb", limits = { pids = 20 } }
      assert.equal("15", try(base, { "forks", "15" }, { limits = { pids = 20 } }).made)
      other:close()
    end)

    it("hold a fork bomb, which ends at its time limit while other sandboxes go on", function()
      local m = mark()
      local bomb <close> = base:start { "/attack", "bomb", m, limits = { pids = 30 }, timeout = 1.5 }
      responsive()
      responsive()
      bomb:wait()
      assert.is_true(bomb.timed_out)
      assert.equal(137, bomb.exit_code)
      assert.same({}, alive(m))
      responsive()
    end)
  end)

  describe("memory", function()
    it("leaves alone what stays below it", function()
      local seen, r = try(base, { "eat", "20" }, { limits = { memory = "64M" } })
      assert.equal("20", seen.ate)
      assert.is_true(r.ok)
      assert.is_false(r.result.oom)
    end)

    it("stops a memory bomb", function()
      local seen, r = try(base, { "eat", "2000" }, { limits = { memory = "64M" } })
      assert.is_nil(seen.ate)
      assert.is_false(r.ok)
      if in_group "memory" then
        assert.is_true(r.result.oom)
        assert.equal(9, r.signal)
        assert.equal(137, r.exit_code)
        assert.is_true(r.result.max_rss <= 66 * MB)
      else -- each process is refused more address space than that
        assert.is_false(r.result.oom)
        assert.equal(3, r.exit_code)
        assert.is_true(tonumber(seen.refused) < 64)
      end
      responsive()
    end)

    it("counts all processes of the sandbox where a control group does", function()
      local r = base:run { shell = "for i in 1 2 3 4; do /attack eat 30 & done; wait; echo all",
        disposable = true, limits = { memory = "64M" }, stderr = false, timeout = 30 }
      local count = select(2, r.stdout:gsub("ate 30", ""))
      if in_group "memory" then
        assert.is_true(r.result.oom)
        assert.is_true(count < 4)
      else
        assert.equal(4, count) -- the known gap of rlimits
      end
    end)

    it("holds files in /dev/shm, which is a result and not an error", function()
      local s <close> = base:session()
      local r = s:run { shell = "echo so far; dd if=/dev/zero of=/dev/shm/x bs=1M count=500; exit 7",
        limits = { memory = "32M" }, timeout = 30 }
      assert.equal("so far\n", r.stdout)
      assert.is_false(r.ok)
      if in_group "memory" then
        assert.is_true(r.result.oom or r.stderr:find "No space left" ~= nil)
      else -- the file system has a size of its own
        assert.match("No space left", r.stderr)
      end
      assert.equal("still here\n", s:run("echo still here").stdout)
    end)

    it("bounds /dev/shm without any limit too", function()
      local r = base:run { shell = "dd if=/dev/zero of=/dev/shm/x bs=1M count=500 2>&1; wc -c </dev/shm/x",
        disposable = true }
      assert.match("No space left", r.stdout)
      assert.is_true(tonumber(r.stdout:match "(%d+)%s*$") <= 64 * MB)
    end)

    it("holds files in memory that have no name (memfd_create) and pipes where a control group"
      .. " does", function()
      local _, r = try(base, { "memfd", "500" }, { limits = { memory = "64M" } })
      if in_group "memory" then
        assert.is_true(r.result.oom)
      else
        assert.is_false(r.result.oom) -- the known gap of rlimits
      end
    end)
  end)

  describe("disk", function()
    local LIMIT = 20 * MB

    -- What got in is within 10 % of the limit, and the layer is no larger.
    local function held(r, bytes)
      if force.disk == "none" then return end
      assert.match("No space left", r.stdout)
      assert.is_true(bytes <= LIMIT and bytes >= LIMIT * 0.9, ("%d of %d bytes"):format(bytes, LIMIT))
      assert.is_true(r.size <= LIMIT)
      local kept = scratch.sh("du -sk " .. arena.newest_layer(home))
      assert.is_true(tonumber(kept:match "%d+") * 1024 <= LIMIT * 1.1, kept)
    end

    it("stops one big file", function()
      local r = base:run { shell = "dd if=/dev/zero of=/big bs=64k count=1600; sync; wc -c </big",
        stderr = bough.STDOUT, limits = { disk = LIMIT } }
      held(r, tonumber(r.stdout:match "(%d+)%s*$"))
    end)

    it("stops many small files", function()
      local r = base:run { "/attack", "files", "30000", limits = { disk = LIMIT }, timeout = 60 }
      local seen = arena.outcomes(r.stdout)
      if force.disk == "none" then
        assert.equal("ok", seen.file)
      else
        assert.equal("ENOSPC", seen.file)
        -- a page each, at least
        local made = tonumber(seen.made)
        assert.is_true(made <= LIMIT / 4096 and made >= LIMIT / 4096 * 0.9, seen.made)
        assert.is_true(r.size <= LIMIT * 1.1, tostring(r.size)) -- with their directory
      end
    end)

    it("stops files with nothing in them", function()
      for _, make in ipairs { "true >", "mkdir ", "ln -s x ", "ln /attack " } do
        local line = "mkdir /d; cd /d; i=0; while " .. make
          .. "$i && [ $i -lt 2000 ]; do i=$((i+1)); done; ls | wc -l"
        local r = base:run { shell = line, stderr = false, limits = { disk = "2M" }, timeout = 60 }
        local made = tonumber(r.stdout:match "%d+")
        if force.disk == "none" then
          assert.is_true(made >= 2000)
        else
          assert.is_true(made < 1000, make .. made)
          assert.is_true(r.size <= 4 * MB, make .. r.size)
        end
      end
    end)

    it("counts a file of the image that is changed", function()
      local image = base:run { "cp", "/bin/busybox", "/bin/busybox.copy", check = true }
      local r = image:run { shell = "echo x >>/bin/busybox.copy", stderr = bough.STDOUT,
        limits = { disk = "256k" } }
      if force.disk == "none" then
        assert.is_true(r.ok)
      else
        assert.match("No space left", r.stdout)
        assert.is_false(r.ok)
      end
    end)

    it("takes what stays below it into the image, and reads it back", function()
      local r = base:run { limits = { disk = LIMIT }, check = true, shell = [[
        dd if=/dev/zero of=/some bs=1M count=5 2>/dev/null; rm /bin/vi; ln -s x /link
        mkdir -m 0700 /dir; echo text >/dir/file; rm -r /tmp; mkdir /tmp]] }
      assert.equal("text\n", r:read "/dir/file")
      assert.equal(5 * MB, #r:read "/some")
      raises("not_found", r.read, r, "/bin/vi")
      assert.equal("text\n", r:run("cat /dir/file; ls /bin/vi").stdout)
    end)

    it("goes together with memory: the one is not taken for the other", function()
      local options = { limits = { memory = "64M", disk = LIMIT }, stderr = bough.STDOUT, timeout = 60 }
      options.shell = "dd if=/dev/zero of=/big bs=1M count=100; /attack eat 30"
      local r = base:run(options)
      assert.match("ate 30", r.stdout)
      assert.is_false(r.result.oom)
      if force.disk ~= "none" then assert.match("No space left", r.stdout) end
      options.shell = "dd if=/dev/zero of=/big bs=1M count=100; /attack eat 2000"
      r = base:run(options)
      assert.not_match("ate", r.stdout)
      assert.equal(in_group "memory", r.result.oom)
      assert.is_string(r.uuid) -- an image all the same
      assert.is_true(r.size <= LIMIT or force.disk == "none")
      responsive()
    end)
  end)

  describe("files", function()
    it("bound the descriptors of a process", function()
      assert.same({ count = "32", open = "EMFILE" }, try(base, { "opens" }, { limits = { files = 32 } }))
    end)

    it("cannot be raised from inside", function()
      local seen = try(base, { "open", "/attack" }, { limits = { files = 32 } })
      assert.equal("ok", seen["/attack"])
      local r = base:run { shell = "ulimit -n 64; ulimit -n", stderr = false, limits = { files = 32 },
        disposable = true }
      assert.equal("32\n", r.stdout)
    end)
  end)

  describe("cpu", function()
    it("is shared out in parts of a processor by a control group, in whole ones by affinity", function()
      local _, r = try(base, { "burn", "0.4" }, { limits = { cpu = 0.25 }, timeout = 60 })
      assert.is_true(r.result.user_time + r.result.system_time >= 0.35)
      if in_group "cpu" then
        assert.is_true(r.elapsed_time >= 1.0, ("%.2f s"):format(r.elapsed_time))
      end
      local count = base:run { "nproc", limits = { cpu = 1 }, disposable = true }.stdout
      assert.is_true(in_group "cpu" or count == "1\n", count)
    end)

    it("of more than there is takes nothing away", function()
      local _, r = try(base, { "burn", "0.05" }, { limits = { cpu = 512 } })
      assert.is_true(r.ok)
    end)
  end)

  describe("of an engine", function()
    it("are for runs that give none, name by name", function()
      local other <close> = bough.open(scratch.store(), { limits = { files = 40, disk = "1M" } })
      local image = other.images:import(arena.tree(attack))
      assert.equal("40", try(image, { "opens" }).count)
      assert.equal("20", try(image, { "opens" }, { limits = { files = 20 } }).count)
      local r = image:run { shell = "dd if=/dev/zero of=/big bs=64k count=100", stderr = bough.STDOUT,
        limits = { files = 20 } }
      assert.equal(force.disk ~= "none", r.stdout:find "No space left" ~= nil)
      local s <close> = image:session { limits = { files = 30 } }
      assert.equal("30", arena.outcomes(s:run({ "/attack", "opens" }).stdout).count)
    end)

    it("bound the processes of every run, asked for or not", function()
      local seen = try(base, { "forks", "6000" }, { timeout = 60 })
      if force.pids == "none" then
        assert.equal("ok", seen.fork)
      else
        assert.equal("EAGAIN", seen.fork)
        assert.is_true(tonumber(seen.made) <= 4096)
      end
    end)

    it("are refused by name when they make no sense", function()
      for name, values in pairs {
        memory = { -1, 0, "lots", "5Q", 1.5, {} }, disk = { -1, 0, "x" }, pids = { 0, -5, 1.5, "many" },
        files = { 0, -1, 0.5, "3" }, cpu = { 0, -1, 0 / 0, math.huge, "fast" },
      } do
        for _, value in ipairs(values) do
          local problem = raises("invalid", base.run, base, { "true", limits = { [name] = value } })
          assert.match("limits." .. name, tostring(problem), 1, true)
          problem = raises("invalid", bough.open, scratch.store(), { limits = { [name] = value } })
          assert.match("limits." .. name, tostring(problem), 1, true)
        end
      end
      assert.match("memory", tostring(raises("invalid", base.run, base, { "true", limits = { memroy = 1 } })))
    end)

    it("too small to start with are one clear line", function()
      for _, limits in ipairs { { memory = 4096 }, { disk = 1 }, { files = 1 }, { pids = 1 } } do
        local ok, r = pcall(base.run, base, { shell = "echo x >/x; cat /x", limits = limits, timeout = 20,
          disposable = true, stderr = false })
        if not ok then
          assert.is_true(bough.is_error(r), tostring(r))
          assert.is_nil(tostring(r):find "\n")
        end
      end
      responsive()
    end)
  end)

  describe("of time", function()
    it("kill everything: daemons that ignore all signals as well; what was said is kept", function()
      local m = mark()
      local s <close> = base:session()
      local before = s.uuid
      local started = system.monotime()
      local r = s:run { "/attack", "daemon", m, timeout = 0.5 }
      assert.is_true(system.monotime() - started < 10)
      assert.is_true(r.timed_out)
      assert.is_false(r.ok)
      assert.equal(137, r.exit_code)
      assert.equal("so far\n", r.stdout)
      assert.equal(before, s.uuid)
      assert.is_string(r.uuid)
      assert.same({}, alive(m))
      assert.equal("on\n", s:run("echo on").stdout)
    end)

    it("keep the files that were written", function()
      local r = base:run { shell = "echo half >/file; sleep 60", timeout = 0.3 }
      assert.is_true(r.timed_out)
      assert.equal("half\n", r:read "/file")
    end)

    it("end a run that floods its output, and one that reads what nobody writes", function()
      local r = base:run { "yes", timeout = 0.3, disposable = true, truncate_output_at = 1000 }
      assert.is_true(r.timed_out)
      assert.equal(1000, #r.stdout)
      assert.is_true(r.result.truncated.stdout > 0)
      r = base:run { shell = "mkfifo /tmp/f; cat /tmp/f", timeout = 0.3, disposable = true }
      assert.is_true(r.timed_out)
    end)

    it("end with the command: what it left running goes, daemons too", function()
      local m = mark()
      local r = base:run { shell = ("/attack daemon %s >/dev/null & sleep 0.1; echo done"):format(m) }
      assert.equal("done\n", r.stdout)
      assert.is_true(r.ok)
      assert.same({}, alive(m))
    end)
  end)
end)
