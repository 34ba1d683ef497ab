--- Faults: what is killed, full, read-only or not there loses nothing and says one clear line.

local bough = require "bough"
local lfs = require "lfs"
local mix = require "spec.support.fault_mix"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local system = require "system"

local quote = scratch.quote

local HOST_KILLS, KEEPER_KILLS = 100, 100
local LUA = lfs.symlinkattributes("/proc/self/exe", "target")
local OWN_UID = lfs.attributes("/proc/self", "uid")

-- Printed, so that a failure can be had again; BOUGH_SEED gives it.
local seed = math.tointeger(tonumber(os.getenv "BOUGH_SEED") or os.time() % 100000)

local function tell(...) io.write("# ", string.format(...), "\n") end

-- Waits until `fn` gives something true; after `seconds` raises with what `why` says.
local function wait_for(seconds, why, fn)
  local until_ = system.monotime() + seconds
  while true do
    local value = fn()
    if value then return value end
    if system.monotime() > until_ then error(("not within %d s: %s"):format(seconds, why()), 2) end
    bough.sleep(0.002) -- what an engine does in the background goes on
  end
end

local function slurp(path)
  local file = io.open(path, "rb")
  if not file then return "" end
  local text = file:read "a" or ""
  file:close()
  return text
end

local function names_in(path)
  local names = {}
  for name in lfs.dir(path) do
    if name ~= "." and name ~= ".." then names[#names + 1] = name end
  end
  return names
end

-- The processes of a store: its keepers, and everything of ours that has lost its keeper.
local function processes(home)
  local found = {}
  for pid in lfs.dir "/proc" do
    if pid:find "^%d" and lfs.attributes("/proc/" .. pid, "uid") == OWN_UID then
      local comm, state, parent = slurp("/proc/" .. pid .. "/stat"):match "^%d+ %((.*)%) (%a) (%d+)"
      -- bough-spawn is nobody's child from the start, and belongs to a host, not to a store
      local ours = comm and comm:find "^bough%-" and comm ~= "bough-spawn" and (parent == "1" and comm ~= "bough-keeper"
        or slurp("/proc/" .. pid .. "/cmdline"):find(home, 1, true))
      if ours and state ~= "Z" then found[#found + 1] = pid .. " " .. comm end
    end
  end
  return found
end

local function nothing_runs(home)
  wait_for(10, function() return table.concat(processes(home), ", ") .. " still run" end,
    function() return #processes(home) == 0 end)
end

-- Control groups of keepers that have been killed: the next keeper sweeps them.
local function groups_of(keepers)
  local left = {}
  local function look(path, depth)
    local ok, iterate, state = pcall(lfs.dir, path)
    if not ok then return end
    for name in iterate, state do
      local full = path .. "/" .. name
      if name:find "^[^.]" and lfs.symlinkattributes(full, "mode") == "directory" then
        if keepers[name:match "^bough%-(%d+)$"] then left[#left + 1] = full end
        if depth > 0 then look(full, depth - 1) end
      end
    end
  end
  look("/sys/fs/cgroup", 2)
  return left
end

-- Opens the store after something was killed and looks at everything; returns the number of images.
local function aftermath(home, told, keepers)
  nothing_runs(home)
  assert.is_nil(slurp "/proc/self/mountinfo":find(home, 1, true))
  local box <close> = bough.open { home = home }
  wait_for(10, function() return "home/tmp has " .. table.concat(names_in(home .. "/tmp"), " ") end,
    function() return #names_in(home .. "/tmp") == 1 end)
  for tag, uuid in pairs(told) do
    local image = box.images:get(tag)
    assert.is_nil(mix.trouble(image), tag .. " as told: " .. uuid)
  end
  local count = mix.check(box)
  local info = box:info()
  wait_for(10, function()
    return ("layers: %d directories, %d layers and %d stand-ins"):format(#names_in(home .. "/layers") - 1,
      info.layers, info.stand_ins)
  end, function()
    info = box:info()
    return #names_in(home .. "/layers") - 1 == info.layers + info.stand_ins
  end)
  if keepers then assert.same({}, groups_of(keepers)) end
  box:gc() -- the next round has less to look at
  return count
end

-- Starts support/fault_child.lua; the line goes in front of it.
local function child(before, home, ...)
  local words = { before, quote(LUA), "spec/support/fault_child.lua", quote(home) }
  for _, word in ipairs { ... } do words[#words + 1] = quote(tostring(word)) end
  return assert(io.popen("exec " .. table.concat(words, " ") .. " 2>&1", "r"))
end

-- All that a child says, until it ends, and no more than one line for each thing.
local function says(...)
  local pipe = child(...)
  local lines, all = {}, {}
  for line in pipe:lines() do
    local name, rest = line:match "^(%S+) ?(.*)$"
    if name then lines[name] = rest end
    all[#all + 1] = line
  end
  pipe:close()
  return lines, table.concat(all, "\n")
end

-- What a child has told of its tags: the last uuid of each, until it was about to take it away.
local function follow(told, line)
  local what, tag, uuid = line:match "^(%S+) (%S+) ?(%S*)$"
  if what == "tag" then told[tag] = uuid end
  if what == "untag" then told[tag] = nil end
end

describe("kill -9", function()
  local home, source

  lazy_setup(function()
    home, source = scratch.store(), mix.make_source(30)
    local box <close> = bough.open { home = home }
    mix.base(box)
    tell("seed %d (BOUGH_SEED)", seed)
  end)

  it(("of the host, %d times at random instants, loses nothing and leaves nothing")
    :format(HOST_KILLS), function()
    math.randomseed(seed)
    local told, keepers, most, started = {}, {}, 0, system.monotime()
    for round = 1, HOST_KILLS do
      local pipe = child("", home, "mix", source, math.random(1 << 30))
      local pid = pipe:read "l":match "^pid (%d+)$"
      system.sleep(math.random(1, 150) / 1000)
      assert(os.execute("kill -9 " .. pid))
      local last
      for line in pipe:lines() do
        follow(told, line)
        local keeper = line:match "^keeper (%d+)"
        if keeper then keepers[keeper] = true end
        last = line
      end
      pipe:close()
      assert(not last or not last:find "raised", last)
      local ok, count = pcall(aftermath, home, told, keepers)
      if not ok then error(("round %d of seed %d: %s"):format(round, seed, tostring(count)), 0) end
      most = math.max(most, count)
    end
    tell("%d kills of the host in %.1f s, up to %d images checked", HOST_KILLS,
      system.monotime() - started, most)
  end)

  it(("of the keeper, %d times at random instants, raises one clear error and loses nothing")
    :format(KEEPER_KILLS), function()
    math.randomseed(seed + 1)
    local told, keepers, most, started = {}, {}, 0, system.monotime()
    for round = 1, KEEPER_KILLS do
      local delay, killed = math.random(1, 150) / 1000, false
      local box = bough.open { home = home }
      local keeper = box:info().keeper_pid
      keepers[tostring(keeper)] = true
      local problem
      bough.run(function()
        bough.spawn(function()
          bough.sleep(delay)
          killed = true
          assert(os.execute("kill -9 " .. keeper))
        end)
        local _
        _, problem = pcall(mix.run, box, source, "k", function(what, tag, uuid)
          follow(told, what .. " " .. tag .. " " .. (uuid or ""))
        end)
      end)
      local where = ("round %d of seed %d: "):format(round, seed)
      assert(bough.is_error(problem), where .. tostring(problem))
      assert(killed and (problem.kind == "closed" or problem.kind == "io"), where .. tostring(problem))
      assert.is_nil(tostring(problem):find "\n")
      raises("closed", box.images.get, box.images, "base")
      box:close()
      local ok, count = pcall(aftermath, home, told, keepers)
      if not ok then error(where .. tostring(count), 0) end
      most = math.max(most, count)
    end
    tell("%d kills of the keeper in %.1f s, up to %d images checked", KEEPER_KILLS,
      system.monotime() - started, most)
  end)

  it("of the keeper ends the run that waits, and says so", function()
    local box = bough.open { home = home }
    local run = box.images:get "base":start "sleep 100"
    assert(os.execute("kill -9 " .. box:info().keeper_pid))
    local problem = raises("closed", run.wait, run)
    assert.match("keeper", tostring(problem))
    raises("closed", box.info, box)
    box:close()
    nothing_runs(home)
    local again <close> = bough.open { home = home }
    assert.equal("up\n", again.images:get "base":run("echo up", { disposable = true }).stdout)
  end)
end)

describe("two processes on one store", function()
  it("lose nothing", function()
    local home = scratch.store()
    do
      local box <close> = bough.open { home = home }
      mix.base(box)
    end
    local pipes = { child("", home, "hammer", "left", 60), child("", home, "hammer", "right", 60) }
    local told, dones = {}, 0
    for _, pipe in ipairs(pipes) do
      for line in pipe:lines() do
        follow(told, line)
        if line == "done" then dones = dones + 1 end
        assert.is_nil(line:find "raised", line)
      end
      pipe:close()
    end
    assert.equal(2, dones)
    local box <close> = bough.open { home = home }
    local count = 0
    for tag, uuid in pairs(told) do
      count = count + 1
      local image = box.images:get(tag)
      assert.equal(uuid, image.uuid)
      -- a log that begins anew every fifth time, and has nobody else's lines
      local side, number = tag:match "^(%a+)%-(%d+)$"
      local lines = {}
      for i = (number - 1) // 5 * 5 + 1, number do lines[#lines + 1] = side .. "-" .. i .. "\n" end
      assert.equal(table.concat(lines), image:read "/data/log")
    end
    assert.equal(120, count)
    box:gc()
    for tag, uuid in pairs(told) do assert.equal(uuid, box.images:get(tag).uuid) end
    -- the base and what it stands on, and nothing that nobody wanted
    assert.is_true(#box.images:list { number = math.huge } <= 120 + 4)
  end)
end)

describe("a disk", function()
  -- A mount namespace of its own with rights in it: root has them, an ordinary user gets them in a user
  -- namespace, and is itself again in one more.
  local inside = "unshare --mount sh -c "
  if not scratch.is_root then inside = "unshare --user --map-root-user --mount sh -c " end
  local myself = scratch.is_root and "exec " or
    ("exec unshare --user --map-user=%d --map-group=%d "):format(OWN_UID, lfs.attributes("/proc/self", "gid"))

  -- The words in front of a program that sees what `commands` mount.
  local function with(commands)
    return inside .. quote(commands .. " && " .. myself .. '"$@"') .. " sh"
  end

  local function one_line(text, kind, ...)
    assert.is_string(text)
    assert.match("^raised " .. kind .. " ", text)
    for _, pattern in ipairs { ... } do assert(text:find(pattern) or text:find(pattern, 1, true), text) end
  end

  it("that is full gives one clear line each time, and the rest goes on", function()
    local dir, source = scratch.dir "disk", mix.make_source(1)
    scratch.sh(("head -c 12000000 /dev/urandom >%s/data/big; tar -C %s -cf %s.tar .")
      :format(source, source, source))
    local said, all = says(with(("mount -t tmpfs -o size=9m,mode=0777 full %s"):format(quote(dir))),
      dir .. "/home", "fill", source)
    -- the command is told by its own kernel; only what comes after it may fail in bough
    local run = said.run or ""
    assert(run:find "^said status [^0].*[Nn]o space" or run:find "^raised resource", all)
    one_line(said.import, "resource", "[Nn]o space left")
    one_line(said.archive, "resource", "[Nn]o space left")
    assert.equal("0", said.images, all)
    assert.equal("ok", said.again, all)
  end)

  it("that is full already is named when the store is opened", function()
    local dir = scratch.dir "disk"
    local mount = ("mount -t tmpfs -o size=256k,mode=0777 full %s"
      .. " && { head -c 1000000 /dev/zero >%s/zero; true; } 2>/dev/null"):format(quote(dir), quote(dir))
    local said, all = says(with(mount), dir .. "/home", "open")
    assert(said.open, all)
    one_line(said.open, "resource", "[Nn]o space left", dir)
  end)

  it("that is read-only is named when the store is opened", function()
    local home = scratch.store()
    do
      local box <close> = bough.open { home = home }
      box.images:use "busybox"
    end
    local q = quote(home)
    local said, all = says(with(("mount --bind %s %s && mount -o remount,bind,ro %s"):format(q, q, q)),
      home, "open")
    assert(said.open, all)
    one_line(said.open, "[id][oe]%a*", "[Rr]ead%-only", home)
    local box <close> = bough.open { home = home }
    assert.is_nil(mix.trouble(box.images:get "busybox"))
  end)
end)

describe("open", function()
  it("names a home that is a file, or lies below one", function()
    local file = scratch.file "not a directory\n"
    for _, home in ipairs { file, file .. "/home" } do
      local problem = raises("invalid", bough.open, { home = home })
      assert.match(file, tostring(problem), 1, true)
      assert.match("directory", tostring(problem))
    end
    assert.equal("not a directory\n", slurp(file))
  end)

  it("names a home that it may not use", function()
    if scratch.is_root then return end -- root may use everything
    local dir = scratch.dir "denied"
    scratch.sh("chmod 0555 " .. dir)
    assert.match(dir, tostring(raises("denied", bough.open, { home = dir .. "/home" })), 1, true)
  end)

  it("names a keeper that is not there, or is no keeper", function()
    local home = scratch.store()
    assert.match("/nowhere/keeper",
      tostring(raises("not_found", bough.open, { home = home, keeper = "/nowhere/keeper" })))
    local said, all = says("env BOUGH_KEEPER=/nowhere/keeper", home, "open")
    assert(said.open, all)
    assert.match("^raised not_found .*/nowhere/keeper.*BOUGH_KEEPER", said.open)
    local problem = raises("io", bough.open, { home = home, keeper = "/bin/true" })
    assert.match("ended before it said a word", tostring(problem))
    problem = raises("denied", bough.open, { home = home, keeper = home })
    assert.match(home, tostring(problem), 1, true)
    local box <close> = bough.open { home = home }
    assert.equal("up\n", box.images:use "busybox":run("echo up").stdout)
  end)

  it("says it when the kernel refuses namespaces", function()
    -- root of nothing but a user namespace of its own
    local before = "unshare --user --map-root-user"
    if not scratch.is_root then
      before = "unshare --user --map-current-user --keep-caps sh -c "
        .. quote [[echo 0 >/proc/sys/user/max_user_namespaces &&
          exec setpriv --ambient-caps=-all --inh-caps=-all "$@"]] .. " sh"
    end
    local said, all = says(before, scratch.store(), "open")
    assert(said.open, all)
    assert.match("^raised %a+ open: ", said.open)
    assert.match(scratch.is_root and "root" or "user namespace", said.open)
    assert.equal(2, select(2, (all .. "\n"):gsub("\n", "\n")), all)
  end)
end)
