--- The journal of a server: operations, their events and files, in one file that outlives the process.

local core = require "bough.core"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

describe("a journal", function()
  local path, journal

  before_each(function()
    path = scratch.dir "journal" .. "/serve.db"
    journal = core.journal(path)
  end)

  after_each(function() journal:close() end)

  local function reopen()
    journal:close()
    journal = core.journal(path)
  end

  local function put(uuid, more)
    local row = {
      uuid = uuid, kind = "instance", status = "PENDING", token = "t", image = "i", created = 1000, updated = 1000,
      metadata = "{}",
    }
    for name, value in pairs(more or {}) do row[name] = value end
    local note = journal:put_operation(row)
    note:wait()
    return note
  end

  describe("of operations", function()
    it("gives back what was put, whole, and after it was opened again", function()
      local row = {
        uuid = "a", kind = "instance", status = "SUCCESS", token = "t", image = "i", result_image = "r",
        created = 1788000000.125001, updated = 1788000001.5, over = true, summary = '{"s":1}',
        metadata = '{"m":"\u{e9}"}', result = '{"r":1}',
      }
      journal:put_operation(row):wait()
      assert.same(row, journal:operation "a")
      reopen()
      assert.same(row, journal:operation "a")
      assert.is_nil(journal:operation "b")
    end)

    it("changes what is said, and leaves the rest", function()
      put("a", { metadata = '{"m":1}' })
      journal:put_operation { uuid = "a", status = "EXECUTING", updated = 1001 }
      local row = journal:operation "a" -- a read sees the writes before it
      assert.same({ "EXECUTING", 1000.0, 1001.0, '{"m":1}', false },
        { row.status, row.created, row.updated, row.metadata, row.over })
      journal:put_operation { uuid = "a", status = "FAILED", updated = 1002, over = true, result = "{}" }
      row = journal:operation "a"
      assert.same({ "FAILED", "t", "i", "instance", "{}", true },
        { row.status, row.token, row.image, row.kind, row.result, row.over })
    end)

    it("refuses one that says too little, alone of all that came with it", function()
      local good = journal:put_operation { uuid = "a", kind = "k", status = "s", created = 1, updated = 1 }
      local bad = journal:put_operation { uuid = "b", updated = 1 }
      local other = journal:put_operation { uuid = "c", kind = "k", status = "s", created = 2, updated = 2 }
      raises("io", bad.wait, bad)
      raises("io", bad.wait, bad)
      good:wait()
      other:wait()
      assert.is_true(bad.done)
      assert.same({ "c", "a" }, { journal:operations()[1].uuid, journal:operations()[2].uuid })
      raises("invalid", journal.put_operation, journal, {})
    end)

    it("lists them, newest first, by filters and pages", function()
      for i = 1, 5 do
        put("o" .. i, {
          created = 1000 + i, kind = i == 3 and "image_import" or "instance",
          status = i > 3 and "SUCCESS" or "EXECUTING", over = i > 3, summary = i > 3 and "{}" or nil,
        })
      end
      local function names(filter)
        local all = {}
        for i, row in ipairs(journal:operations(filter)) do all[i] = row.uuid end
        return table.concat(all, " ")
      end
      assert.equal("o5 o4 o3 o2 o1", names())
      assert.equal("o4 o3", names { limit = 2, offset = 1 })
      assert.equal("", names { limit = 2, offset = 5 })
      assert.equal("o3", names { kind = "image_import" })
      assert.equal("o5 o4", names { status = "SUCCESS" })
      assert.equal("", names { status = "SUCCESS", over = false })
      assert.equal("o3 o2 o1", names { over = false })
      assert.equal("o5 o4 o3", names { since = 1003 })
      assert.equal("o2 o1", names { before = 1003 })
      assert.equal("", names { since = 1004, before = 1003 })
      assert.is_nil(journal:operations()[1].metadata)
    end)

    it("knows which one made an image", function()
      put("a", { result_image = "x" })
      put("b", { result_image = "x" })
      put("c", { result_image = "y" })
      assert.same({ x = "a", y = "c" }, journal:makers { "x", "y", "z" })
      assert.same({}, journal:makers {})
    end)

    it("forgets what is over and old, with its events", function()
      for i, uuid in ipairs { "a", "b", "c", "d" } do
        put(uuid, { created = i, updated = i, over = uuid ~= "b", result = "{}" })
        journal:append(uuid, 0, { 0 }, { "frame of " .. uuid })
      end
      assert.equal(1, journal:prune { before = 4, limit = 1 })
      assert.is_nil(journal:operation "a")
      assert.equal(1, journal:prune { before = 4, limit = 10 })
      assert.is_nil(journal:operation "c")
      assert.is_nil(journal:events("c", -1))
      assert.equal("frame of b", journal:events("b", -1))
      assert.equal("frame of d", journal:events("d", -1))
      put("e")
      assert.is_nil(journal:events("e", -1))
    end)
  end)

  describe("of events", function()
    before_each(function() put "a" end)

    it("gives them back in order, byte for byte, in pages", function()
      local frames, spids = {}, {}
      for i = 1, 100 do
        frames[i] = ("%d\0%s\n"):format(i, ("x"):rep(i))
        spids[i] = i % 3
      end
      journal:append("a", 0, { table.unpack(spids, 1, 60) }, { table.unpack(frames, 1, 60) })
      journal:append("a", 60, { table.unpack(spids, 61) }, { table.unpack(frames, 61) })
      local text, last, count = journal:events("a", -1)
      assert.equal(table.concat(frames), text)
      assert.same({ 99, 100 }, { last, count })
      local seen, after, pages = {}, -1, 0
      while true do
        local page, page_last = journal:events("a", after, nil, 700)
        if not page then break end
        assert.is_true(#page <= 700)
        seen[#seen + 1], after, pages = page, page_last, pages + 1
      end
      assert.equal(table.concat(frames), table.concat(seen))
      assert.is_true(pages > 5)
      assert.equal(frames[100], journal:events("a", 98, nil, 1)) -- at least one, whatever its size
      assert.is_nil(journal:events("a", 99))
      assert.is_nil(journal:events("a", 1 << 40))
      assert.equal(table.concat(frames), journal:events("a", -99))
      local of_one = {}
      for i = 1, 100 do if i % 3 == 1 then of_one[#of_one + 1] = frames[i] end end
      assert.equal(table.concat(of_one), journal:events("a", -1, 1))
      assert.is_nil(journal:events("a", -1, 7))
      assert.equal(99, journal:last_event "a")
    end)

    it("keeps operations apart", function()
      put "b"
      journal:append("b", 0, {}, { "of b" })
      assert.equal(-1, journal:last_event "a")
      assert.is_nil(journal:events("a", -1))
      assert.equal("of b", journal:events("b", -1))
      assert.is_nil(journal:events("nobody", -1))
      assert.equal(-1, journal:last_event "nobody")
      local note = journal:append("nobody", 0, {}, { "x" })
      raises("not_found", note.wait, note)
      note = journal:append("b", (1 << 24) - 1, {}, { "x", "y" })
      raises("resource", note.wait, note)
    end)

    it("writes the same twice as once", function()
      journal:append("a", 0, { 0 }, { "one" })
      journal:append("a", 0, { 0, 1 }, { "one", "two" })
      assert.equal("onetwo", journal:events("a", -1))
    end)
  end)

  describe("of files", function()
    local digest = ("ab"):rep(32)

    it("keeps one for each content", function()
      local row = { uuid = "u", sha256 = digest, size = 3, created = 10.0, updated = 10.0 }
      assert.same(row, journal:put_file(row))
      assert.same({ uuid = "u", sha256 = digest, size = 3, created = 10.0, updated = 20.0 },
        journal:put_file { uuid = "v", sha256 = digest, size = 3, created = 20, updated = 20 })
      assert.equal("u", journal:file(digest).uuid)
      assert.equal(digest, journal:file "u".sha256)
      assert.is_nil(journal:file "v")
      assert.is_nil(journal:file(("cd"):rep(32)))
      raises("invalid", journal.put_file, journal, { uuid = "u" })
      raises("invalid", journal.put_file, journal, { uuid = "u", sha256 = ("x"):rep(200), size = 1 })
    end)

    it("lists them, newest first", function()
      for i = 1, 3 do
        journal:put_file { uuid = "u" .. i, sha256 = ("%064d"):format(i), size = i, created = i, updated = i }
      end
      local rows = journal:files { limit = 2 }
      assert.same({ 2, "u3", "u2" }, { #rows, rows[1].uuid, rows[2].uuid })
      assert.equal("u1", journal:files({ offset = 2 })[1].uuid)
      assert.equal(2, #journal:files { since = 2 })
      assert.equal(1, #journal:files { before = 2 })
      assert.equal(0, #journal:files { offset = 3 })
    end)
  end)

  it("holds up nobody while it writes, and keeps the order of thousands", function()
    put "a"
    local turns, last = 0, nil
    core.run(function()
      local done = false
      local counter = core.spawn(function()
        while not done do
          turns = turns + 1
          core.sleep(0)
        end
      end)
      local frame = ("x"):rep(2000)
      for i = 0, 4999 do last = journal:append("a", i, { 1 }, { frame }) end
      assert.is_true(journal.pending > 5000 * 2000)
      last:wait()
      done = true
      counter:wait()
    end)
    assert.is_true(turns > 3, turns .. " turns of the loop")
    journal:sync()
    assert.equal(0, journal.pending)
    assert.equal(4999, journal:last_event "a")
  end)

  it("lets a waiter be cancelled", function()
    put "a"
    core.run(function()
      for _ = 1, 20 do
        local task = core.spawn(journal.operation, journal, "a")
        core.sleep(0)
        task:cancel()
        pcall(task.wait, task)
      end
    end)
    assert.equal("a", journal:operation "a".uuid)
  end)

  it("belongs to one server at a time", function()
    local problem = raises("busy", core.journal, path)
    assert.match(path .. ": another server has it open", problem.message, 1, true)
    local script = [[
      local ok, problem = pcall(require "bough.core".journal, arg[1])
      print(ok, problem.kind)]]
    assert.equal("false\tbusy\n", fixture.run_lua(script, path))
    journal:close()
    script = [[
      local journal = require "bough.core".journal(arg[1])
      journal:put_operation { uuid = "x", kind = "k", status = "s", created = 1, updated = 1 }
      journal:close()
      print "written"]]
    assert.equal("written\n", fixture.run_lua(script, path))
    journal = core.journal(path)
    assert.equal("k", journal:operation "x".kind)
  end)

  it("has what was written when its process is killed", function()
    journal:close()
    scratch.sh("timeout 60 " .. fixture.lua_command([[
      local core = require "bough.core"
      local journal = core.journal(arg[1])
      for i = 1, 100 do
        journal:put_operation { uuid = "o" .. i, kind = "k", status = "s", created = i, updated = i }
      end
      journal:append("o1", 0, { 1 }, { "frame" }):wait()
      os.execute("kill -9 " .. io.open("/proc/self/stat"):read "n")]], path) .. " || true")
    journal = core.journal(path)
    assert.equal(100, #journal:operations())
    assert.equal("frame", journal:events("o1", -1))
  end)

  it("writes what it was given when its Lua state ends without a word", function()
    journal:close()
    fixture.run_lua([[
      journal = require "bough.core".journal(arg[1])
      for i = 1, 100 do
        journal:put_operation { uuid = "o" .. i, kind = "k", status = "s", created = i, updated = i }
      end]], path)
    journal = core.journal(path)
    assert.equal(100, #journal:operations())
  end)

  it("takes nothing after close, and closes twice", function()
    journal:put_operation { uuid = "x", kind = "k", status = "s", created = 1, updated = 1 }
    journal:close()
    journal:close()
    assert.is_true(journal.closed)
    raises("closed", journal.operation, journal, "x")
    raises("closed", journal.put_operation, journal, { uuid = "y" })
    raises("closed", journal.sync, journal)
    journal = core.journal(path)
    assert.equal("k", journal:operation "x".kind)
  end)

  it("can be read by its owner alone", function()
    assert.match("^-rw%-%-%-%-%-%-%-", scratch.sh("ls -l " .. scratch.quote(path)))
  end)

  it("names its file when it is damaged, not there, or of a later version", function()
    journal:close()
    scratch.file(("not a database, and long enough to be one. "):rep(100), path)
    local problem = raises("corrupt", core.journal, path)
    assert.match(path, problem.message, 1, true)
    raises("not_found", core.journal, path .. "/not/there")
    path = scratch.dir "journal" .. "/serve.db"
    core.journal(path):close()
    local file = assert(io.open(path, "r+b"))
    file:seek("set", 60) -- user_version, four bytes in the header
    file:write "\0\0\0\99"
    file:close()
    problem = raises("unsupported", core.journal, path)
    assert.match("version 99, made by a newer bough", problem.message, 1, true)
    path = scratch.dir "journal" .. "/serve.db"
    journal = core.journal(path)
  end)
end)
