local bough = require "bough"
local core = require "bough.core"
local fake = require "spec.support.fake_engine"
local files = require "bough.files"
local full = require "spec.support.fake_full"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"

-- Local files that are not there: path -> kind, for `core.fs`.
local function with_local(tree)
  local real = core.fs
  local listed = {}
  local function info(path)
    local kind = tree[path]
    if not kind then return nil, path .. ": No such file or directory", 2 end
    local target = kind:match "^-> (.*)"
    return { kind = target and "symlink" or kind, symlink_to = target, mode = kind == "dir" and 493 or 416,
      size = 1, mtime = 1.5, uid = 7, gid = 7 }
  end
  core.fs = {
    stat = function(path) return info((path:gsub("(.)/+$", "%1"))) end,
    list = function(path)
      listed[#listed + 1] = path
      local prefix, found = path:gsub("/*$", "/"), {}
      for other in pairs(tree) do
        local name = other:sub(1, #prefix) == prefix and other:sub(#prefix + 1)
        if name and name ~= "" and not name:find("/", 1, true) then
          found[#found + 1] = info(other)
          found[#found].name = name
        end
      end
      table.sort(found, function(a, b) return a.name < b.name end)
      return found
    end,
  }
  finally(function() core.fs = real end)
  return listed
end

local function expand(arguments, cwd)
  return files.expand(arguments, { op = "run", cwd = cwd, names = { "files" } })
end

local function refused(arguments, kind)
  return raises(kind or "invalid", expand, arguments).message
end

-- "path" -> item
local function by_path(items)
  local all = {}
  for _, item in ipairs(items) do all[item.path] = item end
  return all
end

local function paths(items)
  local all = {}
  for i, item in ipairs(items) do all[i] = item.path end
  table.sort(all)
  return all
end

describe("bough.files", function()
  describe("destinations", function()
    it("L9.30 list entry lands at /basename, in cwd for a run", function()
      with_local { ["a.txt"] = "file", ["src/b.c"] = "file" }
      assert.same({ "/a.txt", "/b.c" }, paths(expand { { "a.txt", "src/b.c" } }))
      assert.same({ "/project/a.txt", "/project/b.c" }, paths(expand({ { "a.txt", "src/b.c" } }, "/project")))
      assert.same({ "/b.c" }, paths(expand { { bough.file "src/b.c" } }))
    end)

    it("L9.30 dict key overrides spec.path", function()
      local items = expand { { ["/x"] = { content = "1", path = "/y" }, { content = "2", path = "/z" } } }
      assert.same({ "/x", "/z" }, paths(items))
    end)

    it("L9.30 content without a destination raises", function()
      assert.match('files%[1%]: 4 bytes of data needs a destination', refused { { bough.bytes "data" } })
      refused { { { content = "x" } } }
      refused { { bough.symlink "/etc" } }
      assert.match("has no name of its own", refused { { "." } })
      assert.match("has no name of its own", refused { { bough.dir ".." } })
    end)

    it("are normalised: /a, a, //a/ and /x/../a are one", function()
      for _, path in ipairs { "/a", "a", "//a/", "/x/../a", "./a", "/a/." } do
        assert.equal("/a", expand({ { [path] = { content = "" } } })[1].path)
      end
      assert.equal("/src/a", expand({ { a = { content = "" } } }, "/src")[1].path)
      assert.equal("/a", expand({ { ["../a"] = { content = "" } } }, "/src")[1].path)
    end)

    it("that end in / receive the base name", function()
      with_local { ["conf/a.conf"] = "file", d = "dir" }
      assert.same({ "/etc/a.conf" }, paths(expand { { ["/etc/"] = "conf/a.conf" } }))
      assert.same({ "/etc/a.conf" }, paths(expand { { { source = "conf/a.conf", path = "/etc/" } } }))
      assert.same({ "/opt/d" }, paths(expand { { ["/opt/"] = bough.dir "d" } }))
    end)

    it("cannot lead out, hold NUL, be empty, or be the root", function()
      assert.match('"../a" leads out', refused { { ["../a"] = { content = "" } } })
      refused { { ["/a/../../b"] = { content = "" } } }
      refused { { ["/a\0"] = { content = "" } } }
      refused { { [""] = { content = "" } } }
      assert.match("root directory", refused { { ["/"] = { content = "" } } })
      refused { { ["/x/.."] = bough.file "a" } }
    end)

    it("L9.31 duplicates after normalising raise before any upload, naming both", function()
      local message = refused { { ["/a"] = { content = "1" }, ["//a/"] = { content = "22" } } }
      assert.match('"/a" is given twice: by files["//a/"] (2 bytes of data) and by files["/a"]',
        message, 1, true)
      refused { { "x/a.txt", "y/a.txt" } }
      refused { { "a.txt", ["/a.txt"] = { content = "" } } }
      refused { { a = { content = "" } }, { ["/a"] = { content = "" } } }
    end)

    it("L9.31 a file under another file raises, naming both", function()
      local message = refused { { ["/a"] = { content = "1" }, ["/a/b/c"] = { content = "22" } } }
      assert.match('"/a/b/c" %(2 bytes of data%) is below "/a" %(1 byte of data%)', message)
      refused { { ["/l"] = bough.symlink "/etc", ["/l/x"] = { content = "" } } }
    end)
  end)

  describe("order and forms", function()
    it("takes the array part in order, then keys sorted", function()
      local plan = files.plan({ { "z", "y", ["/b"] = "q", ["/a"] = "q" } }, { op = "run" })
      assert.same({ "/z", "/y", "/a", "/b" },
        { plan[1].path, plan[2].path, plan[3].path, plan[4].path })
    end)

    it("takes every form", function()
      with_local { f = "file", d = "dir" }
      local items = by_path(expand { {
        "f", bough.dir "d", ["/bytes"] = bough.bytes "b", ["/content"] = { content = "c" },
        ["/source"] = { source = "f" }, ["/link"] = bough.symlink "../x", ["/file"] = bough.file "f",
      } })
      assert.equal("f", items["/f"].source)
      assert.equal("dir", items["/d"].kind)
      assert.equal("b", items["/bytes"].content)
      assert.equal("c", items["/content"].content)
      assert.equal("f", items["/source"].source)
      assert.equal("f", items["/file"].source)
      assert.equal("symlink", items["/link"].kind)
      assert.equal("../x", items["/link"].target)
    end)

    it("raises for what is no spec, and says where", function()
      assert.match("files%[2%]: expected a local path or a file spec", refused { { "a", 42 } })
      assert.match('files%["/x"%]', refused { { ["/x"] = true } })
      refused { { ["/x"] = { "a" } } }
      refused { { ["/x"] = {} } }
      refused { { "" } }
      refused { { "a\0b" } }
      refused { { [1] = "a", [3] = "b" } }
      refused { { [true] = "a" } }
      refused { { ["/x"] = { content = "a", source = "b" } } }
      refused { { ["/x"] = { content = 5 } } }
      refused { { ["/x"] = { source = {} } } }
      assert.match('did you mean "content"', refused { { ["/x"] = { source = "a", contnt = "b" } } })
    end)

    it("says so when a single spec stands where a list belongs", function()
      assert.match("single spec", refused { { content = "x", path = "/a" } })
      assert.match('write { ["/dest"] = { content = ... } }', refused { { content = "x" } }, 1, true)
      assert.match('["/source"] places a file', refused { { source = "x" } }, 1, true)
      with_local { x = "file" }
      assert.same({ "/source" }, paths(expand { { ["/source"] = "x" } }))
      assert.same({ "/content" }, paths(expand { { content = { content = "x" } } }))
    end)

    it("names the file whose setting is wrong", function()
      for key, value in pairs { mode = 493, uid = -1, gid = "0", mtime = "now", mdoe = "0644" } do
        local message = refused { { ["/a"] = { content = "" }, ["/b"] = { content = "", [key] = value } } }
        assert.match('files["/b"]: ', message, 1, true)
        assert.match(key, message, 1, true)
      end
      assert.match('^files%["/b"%]: mode must be', refused { { ["/b"] = { content = "", mode = "9" } } })
    end)

    it("says of a local path that it leads in a circle, once", function()
      local dir = scratch.dir()
      scratch.sh("ln -s loop " .. dir .. "/loop")
      assert.equal(('files: "%s/loop" leads in a circle of symbolic links'):format(dir),
        refused { { ["/x"] = dir .. "/loop" } })
    end)

    it("raises for local files that are missing or special", function()
      with_local { p = "fifo", d = "dir", f = "file" }
      assert.match('"nonesuch": no such file', refused({ { "nonesuch" } }, "not_found"))
      assert.match('"p" is a fifo', refused { { "p" } })
      assert.match("not a directory", refused { { bough.dir "f" } })
    end)
  end)

  describe("modes and owners", function()
    local function item(opts) return expand({ { ["/x"] = bough.bytes("", opts) } })[1] end

    it("L9.32 default mode 0644, uid and gid 0", function()
      local made = item()
      assert.same({ 420, 0, 0 }, { made.mode, made.uid, made.gid })
      assert.is_nil(made.mtime)
    end)

    it("L9.32 takes octal strings and letters", function()
      for text, mode in pairs { ["0755"] = 493, ["755"] = 493, ["4755"] = 2541, ["04755"] = 2541,
        ["000"] = 0, ["rwxr-xr-x"] = 493, ["rw-r-----"] = 416, ["rwsr-sr-t"] = 4077,
        ["rwSr-Sr-T"] = 4004 } do
        assert.equal(mode, item({ mode = text }).mode, text)
      end
    end)

    it("L9.32 any number raises, and says how to write it", function()
      assert.match('Lua has no octal numbers: write mode = "0755"',
        raises("invalid", item, { mode = 755 }).message)
      assert.match('string.format%("%%04o", n%)', raises("invalid", item, { mode = 493 }).message)
      raises("invalid", item, { mode = 0 })
      assert.match("no octal", refused { { ["/x"] = { content = "", mode = 644 } } })
    end)

    it("raises for modes that are none", function()
      for _, mode in ipairs { "", "9", "0888", "75", "rwx", "rwxr-xr-w", "77777", "u+x", true } do
        raises("invalid", item, { mode = mode })
      end
    end)

    it("takes keep for local files only", function()
      assert.equal(-1, expand({ { ["/x"] = bough.file("f", { mode = "keep" }) } })[1].mode)
      assert.match("needs a local file", refused { { ["/x"] = { content = "", mode = "keep" } } })
      assert.match("needs a local file", raises("invalid", bough.bytes, "", { mode = "keep" }).message)
    end)

    it("takes ids and times", function()
      local made = item { uid = 1000, gid = 4294967294, mtime = 1.5 }
      assert.same({ 1000, 4294967294, 1.5 }, { made.uid, made.gid, made.mtime })
      for _, opts in ipairs { { uid = -1 }, { gid = 4294967295 }, { uid = "0" }, { uid = 0.5 },
        { mtime = "now" }, { mtime = 0 / 0 }, { mtime = math.huge } } do
        raises("invalid", item, opts)
      end
    end)

    it("takes back what an entry says of itself", function()
      assert.equal(2541, item({ mode = ("%04o"):format(2541) }).mode)
    end)
  end)

  describe("trees", function()
    local tree = {
      ["p"] = "dir", ["p/a.c"] = "file", ["p/a.o"] = "file", ["p/empty"] = "dir", ["p/build"] = "dir",
      ["p/build/x"] = "file", ["p/sub"] = "dir", ["p/sub/b.c"] = "file", ["p/sub/build"] = "file",
      ["p/sub/keep.o"] = "file", ["p/link"] = "-> ../else\nwhere",
    }

    it("hold everything, with permission bits, and links as links", function()
      with_local(tree)
      local items = by_path(expand { { ["/t"] = bough.dir "p" } })
      assert.equal(11, #paths(expand { { ["/t"] = "p" } }))
      assert.same({ "dir", 493 }, { items["/t"].kind, items["/t"].mode })
      assert.equal("dir", items["/t/empty"].kind)
      assert.same({ "p/a.c", -1, 0, 0 },
        { items["/t/a.c"].source, items["/t/a.c"].mode, items["/t/a.c"].uid, items["/t/a.c"].gid })
      assert.same({ "symlink", "../else\nwhere" }, { items["/t/link"].kind, items["/t/link"].target })
    end)

    it("give files the mode and all the owner that was asked for", function()
      with_local(tree)
      local items = by_path(expand { { ["/t"] = bough.dir("p/", { mode = "0600", uid = 5, gid = 6 }) } })
      assert.same({ 384, 5, 6 }, { items["/t/a.c"].mode, items["/t/a.c"].uid, items["/t/a.c"].gid })
      assert.same({ 493, 5 }, { items["/t/sub"].mode, items["/t/sub"].uid })
    end)

    it("leave out what is excluded, and do not look below it", function()
      local listed = with_local(tree)
      local exclude = { "*.o", "build/", "!keep.o", "/sub/b.*" }
      local items = expand { { ["/t"] = bough.dir("p", { exclude = exclude }) } }
      assert.same({ "/t", "/t/a.c", "/t/empty", "/t/link", "/t/sub", "/t/sub/build", "/t/sub/keep.o" },
        paths(items))
      for _, path in ipairs(listed) do assert.not_match("build", path) end
    end)

    it("take one pattern for exclude, and refuse what is none", function()
      with_local(tree)
      assert.equal(3, #expand { { ["/t"] = bough.dir("p/sub", { exclude = "b.c" }) } })
      for _, exclude in ipairs { 5, { 5 }, "", "!", "/", { a = "b" } } do
        raises("invalid", bough.dir, "p", { exclude = exclude })
      end
      assert.match("only directories", refused { { ["/x"] = { content = "", exclude = "a" } } })
    end)

    it("raise for what cannot be put in place, naming it, unless it is excluded", function()
      with_local { p = "dir", ["p/pipe"] = "fifo" }
      assert.match('"p/pipe" is a fifo.*exclude it', refused { { "p" } })
      assert.equal(1, #expand { { bough.dir("p", { exclude = "pipe" }) } })
    end)

    it("merge with files inside them, unless both have it", function()
      with_local(tree)
      local items = expand { { ["/t"] = bough.dir "p", ["/t/sub/new"] = { content = "" } } }
      assert.equal(12, #items)
      assert.match('"/t/a.c" is given twice: by "p/a.c" and by 0 bytes of data',
        refused { { ["/t"] = bough.dir "p", ["/t/a.c"] = { content = "" } } })
      assert.match("is given twice", refused { { ["/t"] = bough.dir "p", ["/t/empty"] = { content = "" } } })
      assert.equal(12, #expand { { ["/t"] = bough.dir "p", ["/t/empty"] = bough.dir("p/build") } })
    end)

    it("can be the root", function()
      with_local(tree)
      assert.same({ "/b.c", "/build", "/keep.o" }, paths(expand { { ["/."] = bough.dir "p/sub" } }))
    end)
  end)

  describe("objects", function()
    it("check what they are given", function()
      raises("invalid", bough.file, "")
      raises("invalid", bough.file, 5)
      raises("invalid", bough.bytes, 5)
      raises("invalid", bough.dir, "a\0")
      raises("invalid", bough.symlink, "")
      raises("invalid", bough.symlink, "x", { mode = "0777" })
      assert.match('did you mean "mode"', raises("invalid", bough.file, "a", { mod = "0644" }).message)
    end)

    it("print as what they are", function()
      assert.equal('file "a b"', tostring(bough.file "a b"))
      assert.equal("5 bytes of data", tostring(bough.bytes "12345"))
      assert.equal('directory "src"', tostring(bough.dir "src"))
      assert.equal('symbolic link to "x"', tostring(bough.symlink "x"))
    end)
  end)

  describe("the arguments of apply_files", function()
    local function plan_of(...)
      local plan, on_progress = files.arguments("apply_files", ...)
      return paths(plan), on_progress
    end

    it("L9.34 merges positional lists, dicts and files", function()
      assert.same({ "/a", "/b", "/c", "/d", "/e" },
        plan_of("a", { "b" }, { ["/c"] = "x" }, { "d", files = { e = { content = "" } } }))
      assert.same({ "/a", "/x" }, plan_of(bough.file "a", { ["/x"] = bough.bytes "" }))
      assert.same({}, plan_of())
      assert.same({}, plan_of({}, { files = {} }))
    end)

    it("takes a file of the name files by its full path, and not in the last table otherwise", function()
      assert.same({ "/files" }, plan_of { ["/files"] = "x" })
      assert.same({ "/a", "/files" }, plan_of({ files = "x" }, "a"))
      assert.match('%["/files"%]', raises("invalid", files.arguments, "apply_files", { files = "x" }).message)
    end)

    it("finds on_progress in the last table", function()
      local function watch() end
      local list, on_progress = plan_of("a", { on_progress = watch })
      assert.same({ "/a" }, list)
      assert.equal(watch, on_progress)
      assert.same({ "/on_progress" }, plan_of { on_progress = "a" })
    end)

    it("names the argument that is wrong", function()
      local function message(...) return raises("invalid", files.arguments, "apply_files", ...).message end
      assert.match("argument 2: expected", message("a", 5))
      assert.match("argument 1: expected", message(nil, "a"))
      assert.match("argument 2%[1%]", message("a", { 5 }))
      assert.match("given twice: by argument 1", message("a", { "b/a" }))
    end)

    it("leaves the caller's tables alone", function()
      local last = { "a", files = { "b" } }
      plan_of(last)
      assert.same({ "a", files = { "b" } }, last)
    end)
  end)

  describe("in an image", function()
    local box, driver, base
    before_each(function()
      box, driver = fake.open(full)
      base = fake.base(box)
    end)
    after_each(function()
      assert.equal(0, driver.staged_open or 0)
      box:close()
    end)

    it("are there when the command runs, and in the image after it", function()
      local image = base:run { shell = "cat /src/x", cwd = "/src", files = { x = { content = "data" } } }
      assert.equal("data", image.stdout)
      assert.equal("data", image:read "/src/x")
      raises("not_found", base.read, base, "/src/x")
    end)

    it("keep nothing staged when the run cannot start", function()
      raises("not_found", base.run, base, { shell = "nostart", files = { x = { content = "data" } } })
      raises("not_found", base.run, base, { shell = "noop", files = { ["/x"] = bough.file "/nonesuch" } })
    end)

    it("are checked before anything starts", function()
      assert.match('write files = { "a" }',
        raises("invalid", base.run, base, { shell = "noop", files = "a" }).message)
      raises("invalid", base.run, base, { shell = "noop", files = { 5 } })
      raises("invalid", base.run, base, { shell = "noop", files = bough.file "a" })
      raises("invalid", base.run, base, { shell = "noop", files = { a = { content = "" }, ["/a"] = "x" } })
      assert.is_nil(driver.calls.stage)
      base:run { shell = "noop", files = {} }
      assert.is_nil(driver.calls.stage)
    end)

    it("L9.33 identical content uploads once; a known digest uploads zero times", function()
      base:run { shell = "noop", files = { a = { content = "same" }, b = bough.bytes "same" } }
      assert.equal(1, driver.copied)
      base:run { shell = "noop", files = { c = { content = "same" } } }
      assert.equal(1, driver.copied)
    end)

    it("L9.34 apply_files returns a retained image; on a session advances it", function()
      local path = scratch.file "from a file"
      local image = base:apply_files(path, { ["/c"] = { content = "c" } },
        { files = { ["/d"] = bough.bytes "d" } })
      assert.equal("from a file", image:read "/file")
      assert.equal("c", image:read "/c")
      assert.equal("d", image:read "/d")
      assert.equal(base, image:parent())
      assert.equal("files", image.origin)
      assert.equal("files: /file, /c, /d", image.command)
      local session = base:session()
      assert.equal("s", session:apply_files({ x = { content = "s" } }):read "/x")
      assert.equal("s", session:read "/x")
      assert.equal("apply_files", session:history()[2].op)
    end)

    it("tell of their progress", function()
      local events = {}
      local function watch(event) events[#events + 1] = event end
      base:run { shell = "noop", files = { a = { content = "x" } }, on_progress = watch }
      assert.same({
        { op = "upload", unit = "bytes", done = 0, total = 100 },
        { op = "upload", unit = "bytes", done = 50, total = 100 },
        { op = "upload", unit = "bytes", done = 100, total = 100, finished = true },
      }, events)
      events = {}
      base:apply_files { a = { content = "x" }, on_progress = watch }
      assert.equal(3, #events)
      assert.match("mine", tostring(select(2, pcall(base.apply_files, base,
        { a = { content = "x" }, on_progress = function() error "mine" end }))))
    end)

    it("can be uploaded before", function()
      local path = scratch.file "content"
      local uploaded = box.files:upload(path)
      assert.same({ 7, true }, { uploaded.size, uploaded.new })
      assert.is_false(box.files:upload({ content = "content" }).new)
      assert.is_true(box.files:exists(uploaded.sha256:upper()))
      assert.is_false(box.files:exists(("0"):rep(64)))
      assert.match("^upload %x+… of 7 bytes$", tostring(uploaded))
      local image = base:apply_files { ["/x"] = uploaded, ["/y"] = { source = uploaded, mode = "0600" } }
      assert.equal("content", image:read "/y")
      assert.same({ 420, 384 }, { driver.last_items[1].mode, driver.last_items[2].mode })
      assert.match("needs a destination", raises("invalid", base.apply_files, base, { uploaded }).message)
      for _, wrong in ipairs { bough.dir "x", bough.symlink "x", 5, {} } do
        raises("invalid", box.files.upload, box.files, wrong)
      end
      raises("invalid", box.files.exists, box.files, "abc")
      raises("not_found", box.files.upload, box.files, "/nonesuch")
    end)
  end)
end)

describe("files in the embedded engine", function()
  local box, base

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
  end)

  teardown(function() box:close() end)

  local function stat(image, path)
    return image:run({ "stat", "-c", "%a %u %g %Y %s", path, disposable = true }).stdout
  end

  local function tree()
    local dir = scratch.dir() .. "/tree"
    scratch.sh("mkdir -p " .. dir .. "/sub/empty " .. dir .. "/build; cd " .. dir .. [[;
      echo a >a.c; echo o >a.o; echo x >build/x
      printf 'n' >"$(printf 'new\nline')"; printf 'b' >"$(printf 'bad\377')"
      ln -s ../a.c sub/link; ln -s /nonesuch sub/dangling; chmod 4750 a.c; chmod 700 sub; ln a.c hard
      touch -d @1000000000.25 a.c; truncate -s 1M sparse
    ]])
    return dir
  end

  it("L9.30 L9.32 land with the mode, owner and time that was asked for", function()
    local path = scratch.file "some data"
    local image = base:run {
      shell = "cat x && cat /project/file", cwd = "/project",
      files = {
        path, x = { content = "x\n" },
        ["/deep/er/y"] = bough.bytes("y", { mode = "0750", uid = 7, gid = 8, mtime = 1000000000 }),
        ["/run.sh"] = bough.bytes("#!/bin/sh\necho ran\n", { mode = "rwxr-xr-x" }),
      },
    }
    assert.equal("x\nsome data", image.stdout)
    assert.match("^644 0 0 %d+ 9\n", stat(image, "/project/file"))
    assert.equal("0644", image:stat("/project/x").mode_string)
    assert.equal(1000000000.0, image:stat("/deep/er/y").mtime)
    assert.equal("0750", image:stat("/deep/er/y").mode_string)
    if scratch.is_root then assert.equal("750 7 8 1000000000 1\n", stat(image, "/deep/er/y")) end
    assert.equal("ran\n", image:run({ "/run.sh", check = true }).stdout)
    raises("not_found", base.read, base, "/run.sh")
  end)

  it("come as trees, with what is excluded left out", function()
    local dir = tree()
    local image = base:apply_files { ["/src"] = dir }
    assert.equal("a\n", image:read "/src/a.c")
    assert.equal("4750", image:stat("/src/a.c").mode_string)
    assert.equal(1000000000.25, image:stat("/src/a.c").mtime)
    assert.equal("0700", image:stat("/src/sub").mode_string)
    assert.equal("n", image:read "/src/new\nline")
    assert.equal("b", image:read "/src/bad\xFF")
    assert.equal("a\n", image:read "/src/sub/link")
    assert.is_true(image:stat("/src/sub/empty").is_dir)
    assert.equal(1 << 20, image:stat("/src/sparse").size)
    for entry in image:entries "/src/sub" do
      if entry.name == "dangling" then assert.equal("/nonesuch", entry.symlink_to) end
    end
    local spec = bough.dir(dir, { exclude = { "*.o", "build/", "sub" }, mode = "0600" })
    local less = base:apply_files { ["/src"] = spec }
    assert.same({ "/src/a.c", "/src/bad\xFF", "/src/hard", "/src/new\nline", "/src/sparse" },
      less:glob "/src/*")
    assert.equal("0600", less:stat("/src/a.c").mode_string)
  end)

  it("come out as they went in", function()
    local dir = tree()
    local out = scratch.dir() .. "/out"
    base:apply_files({ ["/src"] = dir }):download("/src", out)
    assert.equal("", scratch.sh("diff -r " .. dir .. " " .. out .. " 2>&1 | grep -v dangling || true"))
    local list = "; find . -type f -printf '%P %m %s %T@\\n' | sed 's/ 4750 / 750 /' | LC_ALL=C sort"
    assert.equal(scratch.sh("cd " .. dir .. list), scratch.sh("cd " .. out .. list))
  end)

  it("L9.33 are stored once: a known content is not new", function()
    local path = scratch.file(("x"):rep(100000))
    assert.is_true(box.files:upload(path).new)
    local uploaded = box.files:upload(path)
    assert.is_false(uploaded.new)
    assert.is_true(box.files:exists(uploaded.sha256))
    local before = box:info().bytes
    local one = base:apply_files { ["/x"] = uploaded, ["/y"] = { source = uploaded, mode = "0600" } }
    assert.equal(100000, #one:read "/x")
    assert.equal("0600", one:stat("/y").mode_string)
    assert.is_true(box:info().bytes >= before)
    local fresh = box.files:upload { content = "new" }
    raises("not_found", base.apply_files, base, { ["/z"] = fresh, ["/a"] = "/nonesuch" })
  end)

  it("L9.34 apply_files needs no shell in the image, and advances a session", function()
    local bare = box.images:import(scratch.dir())
    local image = bare:apply_files { a = { content = "1" }, ["/l"] = bough.symlink "a" }
    assert.equal("1", image:read "/l")
    local session = image:session()
    session:apply_files { b = { content = "2" } }
    assert.equal("2", session:read "/b")
    session:rollback()
    raises("not_found", session.read, session, "/b")
    assert.is_true(rawequal(image, image:apply_files {}))
  end)

  it("replace files, and follow no link out", function()
    local image = base:run "mkdir -p /d/sub; echo old >/d/f; ln -s /etc /d/link; ln -s /nonesuch /d/gone"
    local after = image:apply_files { ["/d/f"] = { content = "new" }, ["/d/gone"] = { content = "g" } }
    assert.equal("new", after:read "/d/f")
    assert.equal("old\n", image:read "/d/f")
    assert.equal("g", after:read "/d/gone")
    assert.is_nil(io.open "/nonesuch")
    pcall(function()
      image:apply_files { ["/d/sub"] = { content = "over a directory" } }
    end)
    assert.is_true(image:stat("/d/sub").is_dir)
  end)

  it("may come to nothing", function()
    local dir = tree()
    local nothing = { ["/."] = bough.dir(dir, { exclude = "*" }) }
    assert.equal(0, #base:apply_files(nothing):diff(base))
    assert.equal("x\n", base:run({ shell = "echo x", files = nothing }).stdout)
  end)

  it("raise one line and leave nothing", function()
    local before = box:info()
    local wrong = { { "/nonesuch" }, { bough.dir(scratch.file "x") }, { ["/x"] = bough.file(scratch.dir()) },
      { "/dev/null" }, { ["/x"] = bough.file "/dev/null" } }
    for _, specs in ipairs(wrong) do
      local good, problem = pcall(base.apply_files, base, specs)
      assert.is_false(good)
      assert.is_true(core.is_error(problem), tostring(problem))
      assert.not_match("\n", tostring(problem))
    end
    assert.same({ before.images, before.layers }, { box:info().images, box:info().layers })
  end)

  it("raise under the name of the method, but not what on_progress raises", function()
    local path = scratch.dir() .. "/nonesuch"
    local specs = { ["/x"] = bough.file(path) }
    assert.equal("run", raises("not_found", base.run, base, { "true", files = specs }).op)
    assert.equal("apply_files", raises("not_found", base.apply_files, base, specs).op)
    local mine = core.error("exit", "mine", { op = "mine" })
    local problem = raises("exit", base.apply_files, base, {
      ["/x"] = bough.bytes "x", on_progress = function() error(mine, 0) end,
    })
    assert.equal("mine", problem.op)
  end)
end)
