local bough = require "bough"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("the embedded engine:", function()
  require "spec.engine.conformance"(function() return bough.open(scratch.store()) end, _ENV)
end)

-- What is below a directory of an image, one line each; as the listing that the image's own programs make.
local function listing_outside(image, path)
  local lines = {}
  for entry in image:walk(path) do
    local detail = entry.is_symlink and "-> " .. entry.symlink_to
      or entry.is_file and ("%d %s"):format(entry.size, entry:read():gsub("\n", " ")) or ""
    local kind = entry.is_symlink and "l" or entry.is_dir and "d" or entry.is_fifo and "p" or "f"
    lines[#lines + 1] = ("%s %s %o %d %s"):format(entry.full_path, kind, entry.mode, entry.mtime // 1, detail)
  end
  table.sort(lines)
  return table.concat(lines, "\n")
end

local LIST = [[
  find $DIR -mindepth 1 | while read -r path; do
    facts=$(stat -c '%a %Y' "$path")
    if [ -L "$path" ]; then echo "$path l $facts -> $(readlink "$path")"
    elif [ -d "$path" ]; then echo "$path d $facts "
    elif [ -p "$path" ]; then echo "$path p $facts "
    else echo "$path f $facts $(stat -c %s "$path") $(tr '\n' ' ' <"$path")"; fi
  done]]

local function listing_inside(image, path)
  local lines = fixture.lines(image:run({ shell = LIST, env = { DIR = path }, disposable = true }).stdout)
  table.sort(lines)
  return table.concat(lines, "\n")
end

local function settled(box)
  fixture.until_true("the end of compaction", function() return not box:info().compacting end)
end

describe("the embedded engine's store", function()
  local home, box, base

  before_each(function()
    home = scratch.store()
    box = bough.open(home)
    base = box.images:use "busybox"
  end)

  after_each(function() box:close() end)

  local function disk_use()
    return tonumber(scratch.sh("du -sk " .. home .. "/layers 2>/dev/null || true"):match "%d+") * 1024
  end

  it("gets an image and no layer from a run that changed nothing", function()
    local before = box:info()
    local image = base:run "cat /etc/passwd; ls -R /etc; id"
    local again = image:run "true"
    local after = box:info()
    assert.equal(before.layers, after.layers)
    assert.equal(before.bytes, after.bytes)
    assert.equal(before.images + 2, after.images)
    assert.equal(0, image.size)
    assert.not_equal(base.uuid, image.uuid)
    assert.not_equal(image.uuid, again.uuid)
    assert.equal(listing_outside(base, "/etc"), listing_outside(again, "/etc"))
  end)

  it("gets one layer from a run that changed something, of the size of the change", function()
    local before = box:info()
    local image = base:run "dd if=/dev/zero of=/big bs=1k count=300 2>/dev/null"
    assert.equal(before.layers + 1, box:info().layers)
    assert.is_true(image.size >= 300 * 1024 and image.size < 400 * 1024, "size " .. image.size)
  end)

  it("gets nothing from disposable, failed and cancelled runs", function()
    local before = box:info()
    base:run { shell = "echo x >/x", disposable = true }
    raises("not_found", base.run, base, { "no-such-program" })
    local mark = fixture.long_time()
    local run = base:start { shell = "echo x >/x; sleep " .. mark }
    run:close()
    fixture.gone("sleep " .. mark)
    local after = box:info()
    assert.equal(before.images, after.images)
    assert.equal(before.layers, after.layers)
    -- an empty one may stay for a later run to use
    fixture.until_true("the end of what was staged", function()
      return scratch.sh(("find %s/tmp -path '*/fs/*' 2>/dev/null | wc -l"):format(home)) == "0\n"
    end)
  end)

  it("is opened again with everything in it", function()
    local image = base:run { shell = "echo kept >/kept; echo out; echo err >&2; exit 3", tag = "kept" }
    local result = image.result
    local listing = listing_outside(image, "/etc")
    box:close()
    box = bough.open(home)
    local found = box.images:get "kept"
    assert.equal(image.uuid, found.uuid)
    assert.equal(base.uuid, found.parent_uuid)
    assert.equal(image.created_at, found.created_at)
    assert.same(result, found.result)
    assert.equal("kept\n", found:read "/kept")
    assert.equal(listing, listing_outside(found, "/etc"))
    assert.equal("kept\n", found:run("cat /kept").stdout)
    assert.equal(base.uuid, box.images:use "busybox".uuid)
  end)

  it("is found by $BOUGH_HOME, a URL, a path, an option", function()
    box:close()
    for _, open in ipairs {
      function() return bough.open("local://" .. home) end,
      function() return bough.open { home = home } end,
      function() return bough.open("local", { home = home }) end,
      function() return bough.open(home, { spare = 0 }) end,
    } do
      local other <close> = open()
      assert.equal(home, other:info().home)
      assert.equal("x\n", other.images:get "busybox":run("echo x").stdout)
    end
    local output = scratch.sh("BOUGH_HOME=" .. scratch.quote(home) .. " " .. fixture.lua_command [[
      local box <close> = require "bough".open()
      print(box:info().home)
    ]])
    assert.equal(home .. "\n", output)
  end)

  it("is refused in one line where none can be", function()
    local file = scratch.file "x"
    for _, place in ipairs { file, file .. "/below", "/proc/nothing" } do
      local ok, problem = pcall(bough.open, place)
      assert.is_false(ok)
      assert.is_true(bough.is_error(problem), tostring(problem))
      assert.match(place, tostring(problem), 1, true)
      assert.is_nil(tostring(problem):find "\n")
    end
    raises("invalid", bough.open, "")
    raises("invalid", bough.open, home, { spares = 1 })
    raises("unsupported", bough.open, "nonsense://x")
  end)

  it("serves two engines of one process", function()
    local other <close> = bough.open(home)
    local mine = base:run "echo mine >/mine"
    assert.equal("mine\n", other.images:get(mine.uuid):read "/mine")
    local theirs = other.images:get(mine.uuid):run { shell = "echo theirs >/theirs", tag = "shared" }
    assert.equal("theirs\n", box.images:get "shared":read "/theirs")
    mine:tag_as "shared"
    assert.equal(mine.uuid, other.images:get "shared".uuid)
    local both = bough.all {
      function() return base:run "echo 1" end,
      function() return other.images:get "busybox":run "echo 2" end,
    }
    assert.equal("1\n", other.images:get(both[1].uuid).stdout)
    assert.equal("2\n", box.images:get(both[2].uuid).stdout)
    -- what the other has made is not this one's to drop
    box:gc()
    assert.equal("theirs\n", theirs:read "/theirs")
    assert.equal(0, theirs:run("cat /mine /theirs").exit_code)
  end)

  it("serves several processes at once, and none loses anything", function()
    local command = fixture.lua_command([[
      local bough = require "bough"
      local box <close> = bough.open(arg[1])
      local base = box.images:use "busybox"
      local tip = bough.all((function()
        local list = {}
        for i = 1, 3 do
          list[i] = function()
            local s <close> = base:session()
            for j = 1, 12 do s:run(("echo %s.%d.%d >>/log"):format(arg[2], i, j)) end
            s:tag_as(("%s.%d"):format(arg[2], i))
            return s.uuid
          end
        end
        return list
      end)())
      box:gc()
      print(table.concat(tip, " "))
    ]], home)
    local output = scratch.sh(("for i in a b c; do %s $i & done; wait"):format(command))
    assert.equal(3, #fixture.lines(output), output)
    for _, who in ipairs { "a", "b", "c" } do
      for i = 1, 3 do
        local expected = {}
        for j = 1, 12 do expected[j] = ("%s.%d.%d\n"):format(who, i, j) end
        local image = box.images:get(("%s.%d"):format(who, i))
        assert.equal(table.concat(expected), image:read "/log")
        assert.equal(table.concat(expected), image:run("cat /log").stdout)
        assert.match(image.uuid, output, 1, true)
      end
    end
  end)

  describe("is cleaned by gc", function()
    it("which keeps tags, their ancestors and what sessions stand on, and drops the rest", function()
      local kept = base:run("echo 1 >/1"):run { shell = "echo 2 >/2", tag = "kept" }
      local dropped = base:run "echo gone >/gone"
      local child = kept:run "echo gone >/gone"
      local session <close> = base:session()
      local step = session:run "echo s1 >/s"
      session:run "echo s2 >/s"
      local past = session:run "echo s3 >/s"
      session:rollback()
      local told = box:gc { dry = true }
      assert.equal(3, told.images)
      assert.equal(3, told.layers)
      assert.equal(dropped, box.images:get(dropped.uuid))
      assert.same(told, box:gc())
      for _, image in ipairs { dropped, child, past } do
        raises("not_found", box.images.get, box.images, image.uuid)
        raises("not_found", image.read, image, "/gone")
        raises("not_found", image.run, image, "true")
      end
      assert.equal("1\n", kept:read "/1")
      assert.equal("1\n2\n", kept:run({ "cat", "/1", "/2", disposable = true }).stdout)
      assert.equal("s2\n", session:read "/s")
      assert.equal("s1\n", step:read "/s")
      assert.same({ images = 0, layers = 0, bytes = 0 }, box:gc { dry = true })
    end)

    it("which keeps what commands run in", function()
      local image = base:run "echo x >/x"
      local listener = fixture.listener()
      local run = image:start {
        shell = "echo ready; head -n 1; cat /x", stdout = listener.sink, text = "lines",
        stdin = function()
          if listener.go then return nil end
          listener.go = true
          return "go\n"
        end,
      }
      assert.equal(0, box:gc().images)
      run:wait()
      assert.same({ "ready", "go", "x" }, listener.lines)
      assert.equal(image, run:parent())
    end)

    it("which gives the disk back", function()
      local before = disk_use()
      local image = base:run "dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null; mkdir -m 0 /shut"
      assert.is_true(disk_use() - before > 7 << 20)
      local freed = box:gc()
      assert.equal(1, freed.images)
      assert.is_true(freed.bytes >= 8 << 20)
      fixture.until_true("the space", function() return disk_use() - before < 64 << 10 end)
      fixture.until_true("the trash's end", function()
        return scratch.sh(("find %s/tmp -name 'trash*' 2>/dev/null | wc -l"):format(home)) == "0\n"
      end)
      raises("not_found", image.read, image, "/big")
    end)

    it("which forgets sessions that are closed or collected", function()
      do
        local session <close> = base:session()
        session:run "echo 1 >/1"
      end
      assert.equal(1, box:gc().images)
      base:session():run "echo 2 >/2"
      collectgarbage()
      collectgarbage()
      assert.equal(1, box:gc().images)
    end)

    it("which is checked", function()
      raises("invalid", box.gc, box, { drry = true })
      raises("invalid", box.gc, box, { dry = 1 })
    end)
  end)

  describe("compacts", function()
    -- One line of work for each step of a long chain: files come, change and go, directories are
    -- removed and made again, renamed, replaced by files and links and the other way round.
    local function work(i)
      local d, e = i % 5, (i + 2) % 5
      local lines = { ("echo %d >>/w/log; echo %d >/w/slot%d"):format(i, i, i % 7) }
      local function add(line, ...) lines[#lines + 1] = line:format(...) end
      if i % 3 == 0 then add("mkdir -p /w/d%d/sub; echo %d >/w/d%d/sub/f%d", d, i, d, i % 4) end
      if i % 7 == 0 then add("rm -f /w/slot%d", (i + 3) % 7) end
      if i % 10 == 0 then add("rm -rf /w/d%d", e) end
      if i % 20 == 0 then add("mkdir /w/d%d; echo fresh%d >/w/d%d/new", e, i, e) end
      if i % 11 == 0 then add("ln -sfn target%d /w/link; ln -f /w/log /w/hard%d", i, i % 2) end
      if i % 13 == 0 then add("rm -rf /w/moved; [ ! -e /w/d%d ] || mv /w/d%d /w/moved", d, d) end
      if i % 17 == 0 then add("rm -rf /w/x; echo file >/w/x") end
      if i % 17 == 5 then add("rm -rf /w/x; mkdir -p /w/x/y; echo %d >/w/x/y/z; chmod 0711 /w/x", i) end
      if i % 17 == 11 then add("rm -rf /w/x; ln -s log /w/x") end
      if i % 29 == 0 then add("rm -f /w/pipe; mkfifo -m 0620 /w/pipe") end
      return table.concat(lines, "\n")
    end

    it("a chain of 300 runs, whose every image stays exact", function()
      local session <close> = base:session()
      session:run { "mkdir", "/w" }
      local seen = {}
      for i = 1, 300 do
        local image = session:run { shell = work(i), check = true }
        if i % 30 == 0 or i == 77 then
          seen[#seen + 1] = { image = image, listing = listing_outside(image, "/w") }
          assert.equal(listing_inside(image, "/w"), seen[#seen].listing)
        end
      end
      settled(box)
      local info = box:info()
      assert.is_true(info.stand_ins > 20, "stand-ins: " .. info.stand_ins)
      for _, step in ipairs(seen) do
        assert.equal(step.listing, listing_outside(step.image, "/w"))
        assert.equal(step.listing, listing_inside(step.image, "/w"))
      end
      local log = {}
      for i = 1, 300 do log[i] = i .. "\n" end
      assert.equal(table.concat(log), session:read "/w/log")

      -- only the tip is named: the rest of the session's past stays, for the tip stands on it
      session:tag_as "tip"
      local tip = session.uuid
      session:close()
      box:gc()
      settled(box)
      box:close()
      box = bough.open(home)
      local image = box.images:get "tip"
      assert.equal(tip, image.uuid)
      assert.equal(seen[#seen].listing, listing_outside(image, "/w"))
      assert.equal(seen[#seen].listing, listing_inside(image, "/w"))
      assert.equal("300\n", image:run("tail -n 1 /w/log").stdout)

      -- and without the name nothing of it stays
      image:untag()
      box:gc()
      box:gc()
      info = box:info()
      assert.equal(0, info.stand_ins)
      assert.equal(box.images:get "busybox".uuid, box.images:list { number = 1 }[1].uuid)
    end)

    it("and a removed directory that came back stays empty of what it had", function()
      local session <close> = base:session()
      session:run "mkdir -p /d/sub; echo old >/d/old; echo old >/d/sub/old"
      for i = 1, 9 do session:run("echo >/fill" .. i) end
      session:run "rm -rf /d; mkdir /d; echo new >/d/new"
      for i = 10, 30 do session:run("echo >/fill" .. i) end
      session:run "rm /d/new; mkdir /d/sub; mv /fill1 /d/sub/in"
      for i = 31, 60 do session:run("echo >/fill" .. i) end
      settled(box)
      assert.is_true(box:info().stand_ins > 0)
      assert.same({ "sub" }, fixture.names(session, "/d"))
      assert.same({ "in" }, fixture.names(session, "/d/sub"))
      assert.equal("/d\n/d/sub\n/d/sub/in\n", session:run("find /d").stdout)
      raises("not_found", session.read, session, "/d/old")
      raises("not_found", session.read, session, "/fill1")
    end)

    it("branches that share their past, each by itself", function()
      local trunk <close> = base:session()
      for i = 1, 20 do trunk:run(("echo %d >>/log; echo trunk >/f%d"):format(i, i)) end
      local twins = {}
      for b = 1, 3 do
        local twin <close> = trunk:branch()
        for i = 1, 20 do twin:run(("echo %d.%d >>/log; rm -f /f%d"):format(b, i, i + b)) end
        twins[b] = twin:image()
      end
      settled(box)
      for b = 1, 3 do
        local expected = {}
        for i = 1, 20 do expected[i] = i .. "\n" end
        for i = 1, 20 do expected[20 + i] = ("%d.%d\n"):format(b, i) end
        assert.equal(table.concat(expected), twins[b]:read "/log")
        assert.equal(table.concat(expected), twins[b]:run("cat /log").stdout)
        local left = {}
        for _, name in ipairs(fixture.names(twins[b], "/")) do
          if name:find "^f%d" then left[#left + 1] = math.tointeger(name:sub(2)) end
        end
        table.sort(left)
        local kept = {}
        for i = 1, b do kept[i] = i end
        assert.same(kept, left)
      end
    end)
  end)
end)

describe("the embedded engine", function()
  local box, base

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
  end)

  teardown(function() box:close() end)

  it("runs as a user by name, by uid, by uid and gid", function()
    if box:info().uids == "1" then
      pending "this user has one uid only"
      return
    end
    local function id(user)
      return (base:run({ shell = "id -u; id -g; id -G; echo $HOME", user = user, check = true }).stdout
        :gsub("\n", " "))
    end
    assert.equal("65534 65534 65534 / ", id "nobody")
    assert.equal("1000 0 0 / ", id "1000")
    assert.equal("1000 0 0 / ", id(1000))
    assert.equal("1000 5 5 / ", id "1000:5")
    assert.equal("1000 5 5 / ", id "1000:tty")
    assert.equal("65534 0 0 / ", id "nobody:root")
    assert.equal("0 0 0 /root ", id "root")
    raises("not_found", id, "nobody:no-such-group")
    raises("invalid", id, "")
    raises("invalid", id, "1:2:3")
    raises("invalid", id, -1)
  end)

  it("gives files to whom they belong, and a user no more than is its own", function()
    if box:info().uids == "1" then
      pending "this user has one uid only"
      return
    end
    local image = base:run "mkdir /own; chown 1000:5 /own; chmod 700 /root"
    image = image:run { shell = "echo mine >/own/file; ls /root; echo x >/etc/passwd", user = "1000:5" }
    assert.match("/root", image.stderr, 1, true)
    assert.match("/etc/passwd", image.stderr, 1, true)
    local file = image:ls "/own"[1]
    assert.same({ 1000, 5 }, { file.uid, file.gid })
    assert.equal("mine\n", image:read "/own/file")
    assert.equal(base:read "/etc/passwd", image:read "/etc/passwd")
  end)

  it("passes the host's own streams through", function()
    local output = fixture.run_lua([[
      local bough = require "bough"
      local box <close> = bough.open(arg[1])
      io.write "before\n"
      io.flush()
      box.images:use "busybox":run { shell = "echo one; echo two >&2",
        stdout = bough.INHERIT, stderr = bough.INHERIT }
      io.write "after\n"
    ]], box:info().home)
    local lines = fixture.lines(output)
    assert.equal("before", lines[1])
    assert.equal("after", lines[4])
    table.sort(lines)
    assert.same({ "after", "before", "one", "two" }, lines)
  end)

  it("tells what it is and what is in force", function()
    local info = box:info()
    assert.equal("local", info.engine)
    for _, name in ipairs { "images", "layers", "tags", "bytes", "stand_ins", "keeper_pid" } do
      assert.equal("integer", math.type(info[name]), name)
    end
    for _, name in ipairs { "memory", "pids", "cpu", "disk", "files" } do
      assert.is_string(info.limits[name], name)
    end
    assert.equal(scratch.is_root and "root" or "user", info.mode)
  end)

  it("notices the end of its keeper, in one line, and can be opened again", function()
    local home = scratch.store()
    local other = bough.open(home)
    local image = other.images:use "busybox"
    local mark, listener = fixture.long_time(), fixture.listener()
    local task = bough.spawn(function()
      image:run { shell = "echo ready; sleep " .. mark, stdout = listener.sink, text = "lines" }
    end)
    listener.seen "ready"
    scratch.sh("kill -9 " .. other:info().keeper_pid)
    local ok, problem = pcall(task.wait, task)
    assert.is_false(ok)
    assert.is_true(bough.is_error(problem), tostring(problem))
    assert.is_nil(tostring(problem):find "\n")
    raises("closed", image.run, image, "true")
    fixture.gone("sleep " .. mark)
    other:close()
    other = bough.open(home)
    assert.equal("x\n", other.images:get "busybox":run("echo x").stdout)
    other:close()
  end)

  it("is closed by the collector without a wait", function()
    local home = scratch.store()
    local pid
    do
      local other = bough.open(home)
      pid = other:info().keeper_pid
    end
    collectgarbage()
    collectgarbage()
    fixture.until_true("the keeper's end", function() return not fixture.alive(pid) end)
  end)
end)
