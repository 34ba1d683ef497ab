-- luacheck: ignore 512 (loops that are left at once are what is tested)

local bough = require "bough"
local fake = require "spec.support.fake_engine"
local full = require "spec.support.fake_full"
local glob = require "bough.glob"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local search = require "bough.search"

local function names(entries)
  local all = {}
  for i, entry in ipairs(entries) do all[i] = entry.full_path end
  return all
end

describe("bough.glob", function()
  local function matches(pattern, path) return (glob.path(pattern))(path) end

  it("keeps * and ? within a name", function()
    assert.is_true(matches("*.c", "a.c"))
    assert.is_false(matches("*.c", "x/a.c"))
    assert.is_true(matches("?", "a"))
    assert.is_false(matches("a?c", "a/c"))
    assert.is_true(matches("*", ".hidden"))
    assert.is_true(matches("a*b*c", "axxbyyc"))
    assert.is_true(matches("%d+(.)", "%d+(.)"))
  end)

  it("takes ** for any number of directories", function()
    for _, path in ipairs { "a/b", "a/x/b", "a/x/y/b" } do assert.is_true(matches("a/**/b", path)) end
    assert.is_true(matches("**/b", "b"))
    assert.is_true(matches("**", "a/b/c"))
    assert.is_true(matches("a/**", "a/b/c"))
    assert.is_false(matches("a/**", "a"))
    assert.is_false(matches("a/**/b", "a/b/c"))
    assert.is_true(matches("**/x/**/y", "x/x/q/y/x/y"))
  end)

  it("takes sets, choices and escapes", function()
    assert.is_true(matches("[a-c]x", "bx"))
    assert.is_false(matches("[!a-c]x", "bx"))
    assert.is_true(matches("[]]", "]"))
    assert.is_true(matches("[a-]", "-"))
    assert.is_true(matches("[", "["))
    assert.is_false(matches("[z-a]", "m"))
    assert.is_true(matches("*.{c,h}", "a.h"))
    assert.is_true(matches("{src,lib/{a,b}}/x", "lib/b/x"))
    assert.is_false(matches("{a,b}", "c"))
    assert.is_true(matches("{a", "{a"))
    assert.is_true(matches("\\*", "*"))
    assert.is_false(matches("\\*", "a"))
    raises("invalid", glob.path, ("{a,b}"):rep(12))
  end)

  it("tells how deep a match can be", function()
    assert.equal(2, (select(2, glob.path "*/b")))
    assert.equal(3, (select(2, glob.path "{a,b/c/d}")))
    assert.equal(math.huge, (select(2, glob.path "a/**")))
  end)
end)

describe("bough.search", function()
  local box, driver, image

  before_each(function()
    box, driver = fake.open(full)
    image = fake.base(box):run("write /d/b one two;write /d/sub/x.conf three;write /d/sub/y.txt "
      .. ("z"):rep(5000) .. ";write /top 1")
  end)

  after_each(function()
    assert.equal(0, driver.looks_open or 0)
    assert.equal(0, driver.streams_open or 0)
    box:close()
  end)

  describe("walk and entries", function()
    it("are one request, as they come, parents first", function()
      local seen = {}
      for found in image:walk "/d" do seen[#seen + 1] = found.full_path end
      assert.same({ "/d/b", "/d/sub", "/d/sub/x.conf", "/d/sub/y.txt" }, seen)
      assert.same({ "list", "--path", "/d" }, driver.last_look)
      seen = {}
      for found in image:entries "/d/" do seen[#seen + 1] = found.name end
      assert.same({ "b", "sub" }, seen)
    end)

    it("end the request when the loop is left", function()
      for _ in image:walk "/" do
        assert.equal(1, driver.looks_open)
        break
      end
      assert.equal(0, driver.looks_open)
      pcall(function()
        for _ in image:walk "/" do error "out" end
      end)
      assert.equal(0, driver.looks_open)
    end)

    it("raise for a path that is missing or no directory, before the loop", function()
      raises("not_found", image.walk, image, "/nonesuch")
      assert.match('"/top": not a directory', raises("invalid", image.walk, image, "/top").message)
      raises("invalid", image.entries, image, "/top")
    end)

    it("list directory by directory where the engine has no look", function()
      local other <close> = fake.open()
      local plain = fake.base(other):run "write /d/b 1;write /d/sub/x 3"
      local seen = {}
      for found in plain:walk "/d" do seen[#seen + 1] = found.full_path end
      assert.same({ "/d/b", "/d/sub", "/d/sub/x" }, seen)
      assert.same({ "/d/sub/x" }, names(plain:find { path = "/d", name = "x" }))
      assert.same({ "/d/b", "/d/sub" }, names(plain:find { path = "/d", max_depth = 1 }))
      assert.same({ "/d/sub/x" }, plain:glob "/d/*/x")
      assert.same({}, plain:glob "/nonesuch/*")
      raises("unsupported", plain.grep, plain, "x")
      raises("unsupported", plain.stat, plain, "/d")
    end)
  end)

  describe("stat", function()
    it("tells of one path, whatever it is", function()
      local file = image:stat "/d/sub/x.conf"
      assert.same({ "x.conf", "/d/sub/x.conf", true, 5 },
        { file.name, file.full_path, file.is_file, file.size })
      assert.equal("three", file:read())
      assert.is_true(image:stat("d").is_dir)
      raises("not_found", image.stat, image, "/nonesuch")
      raises("invalid", image.stat, image, "")
    end)
  end)

  describe("find", function()
    local function find(opts)
      opts.path = opts.path or "/d"
      return names(image:find(opts))
    end

    it("fits names, kinds, sizes and times", function()
      assert.same({ "/d/sub/x.conf" }, find { name = "*.conf" })
      assert.same({ "/d/sub/x.conf", "/d/sub/y.txt" }, find { name = { "*.conf", "*.txt" } })
      assert.same({ "/d/sub" }, find { kind = "dir" })
      assert.same({ "/d/sub/y.txt" }, find { larger = "4K" })
      assert.same({ "/d/b", "/d/sub/x.conf" }, find { smaller = 4096 })
      assert.same({}, find { newer = "1h" })
      assert.equal(4, #find { older = "1h" })
      assert.equal(4, #find { newer = 999 })
      assert.same({ "/d/b", "/d/sub" }, find { max_depth = 1 })
      assert.same({ "/d/b" }, find { max_count = 1 })
      assert.is_true(#image:find() >= 7)
    end)

    it("leaves the engine what it can do", function()
      find { name = "!x*", kind = { "file", "symlink" }, max_depth = 3 }
      assert.same({ "list", "--path", "/d", "--kind", "fl", "--max-depth", "3", "--glob", "\\!x*" },
        driver.last_look)
    end)

    it("refuses what it does not know", function()
      for _, opts in ipairs { { nam = "x" }, { kind = "folder" }, { larger = -1 }, { max_depth = 0 },
        { name = "a/b" }, { name = 5 }, { newer = "soon" }, { path = "" } } do
        raises("invalid", image.find, image, opts)
      end
      assert.match('did you mean "dir"', raises("invalid", image.find, image, { kind = "dirs" }).message)
    end)
  end)

  describe("glob", function()
    it("finds full paths, sorted", function()
      assert.same({ "/d/sub/x.conf", "/d/sub/y.txt" }, image:glob "/d/sub/*")
      assert.same({ "/d/sub/x.conf" }, image:glob "**/*.conf")
      assert.same({ "/d/b", "/top" }, image:glob "/{top,d/b}")
      assert.same({ "/top" }, image:glob "/top")
      assert.same({ "/d" }, image:glob "/d/")
      assert.same({}, image:glob "/top/")
      assert.same({}, image:glob "/nonesuch/*")
      assert.same({ "/" }, image:glob "/")
      raises("invalid", image.glob, image, "")
    end)

    it("begins where the pattern begins", function()
      image:glob "/d/sub/*.conf"
      assert.same({ "list", "--path", "/d/sub", "--max-depth", "1", "--glob", "/*.conf" }, driver.last_look)
      image:glob "/d/**/x"
      assert.same({ "list", "--path", "/d", "--glob", "/**/x" }, driver.last_look)
    end)
  end)

  describe("grep", function()
    it("gives matches that print as lines", function()
      local found = image:grep("two", { fixed = true })
      assert.equal(1, #found.matches)
      assert.is_false(found.truncated)
      assert.equal(1, found.files)
      local match = found.matches[1]
      assert.same({ "/d/b", 1, "one two" }, { match.path, match.line_number, match.line })
      assert.same({ { 5, 7 } }, match.submatches)
      assert.equal("/d/b:1: one two", tostring(match))
    end)

    local function args(pattern, opts)
      return table.concat(search.grep_args(pattern, opts, function(path) return path end, "grep"), " ")
    end

    it("hands on its options", function()
      assert.equal("grep -e a -e b --path / --max-total 10000", args { "a", "b" })
      assert.equal("grep -e a --fixed --path /etc --path /usr --glob *.c --glob !x* --before 2 --after 1"
        .. " --max-count 3 --max-total 9", args("a", { fixed = true, path = { "/etc", "/usr" },
        glob = { "*.c", "!x*" }, before = 2, context = 1, max_count = 3, max_total = 9 }))
      assert.equal("grep -e a --path /", args("a", { max_total = math.huge }))
    end)

    it("knows when smart case is insensitive", function()
      assert.match("%-%-ignore%-case", args("a", { case = "insensitive" }))
      assert.not_match("ignore", args("a", { case = "sensitive" }))
      assert.match("%-%-ignore%-case", args("error \\W\\S", { case = "smart" }))
      assert.not_match("ignore", args({ "error", "Warn" }, { case = "smart" }))
      assert.not_match("ignore", args("\\W", { case = "smart", fixed = true }))
    end)

    it("refuses what it cannot search for", function()
      for _, call in ipairs { { nil }, { 5 }, { {} }, { "a\nb" }, { "a\0" }, { { "a", 5 } },
        { "a", { cas = 1 } }, { "a", { case = "no" } }, { "a", { max_count = 0 } }, { "a", { before = -1 } },
        { "a", { path = 5 } } } do
        raises("invalid", image.grep, image, call[1], call[2])
      end
    end)
  end)

  describe("stream", function()
    it("yields chunks, and closes the file at the end and on break", function()
      local pieces = {}
      for chunk in image:stream "/d/sub/y.txt" do pieces[#pieces + 1] = chunk end
      assert.equal(5, #pieces)
      assert.equal(5000, #table.concat(pieces))
      for _ in image:stream "/d/sub/y.txt" do break end
      raises("not_found", image.stream, image, "/nonesuch")
    end)
  end)

  describe("a session", function()
    it("looks into the image where it stands", function()
      local session = image:session()
      session:run "write /new text"
      local methods = { find = { { name = "new" } }, glob = { "/n*" }, grep = { "text" }, stat = { "/new" } }
      for name, arguments in pairs(methods) do
        if session[name] then assert.is_table(session[name](session, table.unpack(arguments))) end
      end
    end)

    it("L9.37 entries listed from a session keep reading the listed image", function()
      local session = image:session()
      session:run "write /f old"
      local entry
      for found in session:entries "/" do
        if found.name == "f" then entry = found end
      end
      session:run "write /f new"
      assert.equal("old", entry:read())
      assert.equal("new", session:read "/f")
    end)
  end)

  describe("download", function()
    it("saves in the engine, tells how far it is, and leaves nothing when it fails", function()
      local dir, events = scratch.dir(), {}
      local path = image:download("/d/sub/x.conf", dir, {
        on_progress = function(event) events[#events + 1] = event end,
      })
      assert.equal(dir .. "/x.conf", path)
      assert.equal("three", io.open(path):read "a")
      assert.same({
        op = "download", item = "/d/sub/x.conf", unit = "bytes", done = 2, total = 2, finished = true,
      }, events[#events])
      raises("not_found", image.download, image, "/nonesuch", dir)
      raises("invalid", image.download, image, "/top", dir, { on_progres = print })
      local left = scratch.sh("ls -A " .. dir)
      assert.equal("x.conf\n", left)
    end)
  end)
end)

describe("in the embedded engine", function()
  local box, base, image

  setup(function()
    box = bough.open(scratch.store())
    base = box.images:use "busybox"
    image = base:run [[
      mkdir -p /t/sub/deep /t/'odd name'; cd /t
      echo 'alpha beta' >a.txt; printf 'one\ntwo Beta\nthree\n' >sub/b.txt; printf 'x\0beta' >bin
      ln -s /etc/passwd out; ln -s ../a.txt sub/in; mkfifo pipe; echo x >"$(printf 'new\nline')"
      echo x >"$(printf 'bad\377utf8')"; chmod 4750 a.txt; ln -s sub lnk
      dd if=/dev/zero of=big bs=1k count=64
    ]]
  end)

  teardown(function() box:close() end)

  it("walks everything, as it is", function()
    local seen = {}
    for found in image:walk "/t" do seen[found.full_path] = found end
    assert.is_true(seen["/t/pipe"].is_fifo)
    assert.is_true(seen["/t/new\nline"].is_file)
    assert.is_true(seen["/t/bad\xFFutf8"].is_file)
    assert.equal("/etc/passwd", seen["/t/out"].symlink_to)
    assert.equal("4750", seen["/t/a.txt"].mode_string)
    assert.equal(65536, seen["/t/big"].size)
    assert.is_nil(seen["/t/lnk/b.txt"])
    assert.equal("alpha beta\n", seen["/t/a.txt"]:read())
  end)

  it("stats files and directories, through links too", function()
    assert.equal(11, image:stat("/t/a.txt").size)
    assert.is_true(image:stat("/t/sub").is_dir)
    assert.is_true(image:stat("/t/lnk").is_dir)
    assert.is_true(image:stat("/").is_dir)
    raises("not_found", image.stat, image, "/t/nonesuch")
  end)

  it("L9.35 ls of a file gives invalid, of a missing path not_found", function()
    raises("invalid", image.ls, image, "/t/a.txt")
    raises("not_found", image.ls, image, "/t/nonesuch")
    raises("invalid", image.walk, image, "/t/a.txt")
    raises("not_found", image.walk, image, "/t/nonesuch")
  end)

  it("finds and globs", function()
    assert.same({ "/t/a.txt", "/t/sub/b.txt" }, names(image:find { path = "/t", name = "*.txt" }))
    assert.same({ "/t/pipe" }, names(image:find { path = "/t", kind = "fifo" }))
    assert.same({ "/t/big" }, names(image:find { path = "/t", larger = "32K" }))
    assert.equal(3, #image:find { path = "/t", kind = "symlink" })
    assert.same({ "/t/a.txt" }, names(image:find { path = "/t/a.txt" }))
    assert.same({ "/t/a.txt", "/t/sub/b.txt" }, image:glob "/t/**/*.txt")
    assert.same({ "/t/odd name", "/t/sub" }, image:glob "/t/*/")
    assert.same({ "/t/lnk/b.txt" }, image:glob "/t/lnk/*.txt")
  end)

  it("greps text, with context and limits, and passes over binary files", function()
    local found = image:grep("beta", { path = "/t" })
    assert.same({ "/t/a.txt" }, { found.matches[1].path, found.matches[2] and found.matches[2].path })
    local both = image:grep("beta", { path = "/t", case = "smart" })
    assert.equal(2, #both.matches)
    assert.equal("/t/sub/b.txt:2: two Beta", tostring(both.matches[2]))
    assert.same({ { 5, 8 } }, both.matches[2].submatches)
    local around = image:grep("^two", { path = "/t/sub", context = 1 })
    assert.same({ "context", "match", "context" },
      { around.matches[1].type, around.matches[2].type, around.matches[3].type })
    assert.is_true(image:grep("e", { path = "/t", max_total = 1 }).truncated)
    raises("invalid", image.grep, image, "(")
    assert.equal(0, #image:grep("(", { path = "/t", fixed = true }).matches)
    raises("not_found", image.grep, image, "x", { path = "/nonesuch" })
  end)

  it("streams with breaks, and downloads files and trees", function()
    local size = 0
    for chunk in image:stream "/t/big" do size = size + #chunk end
    assert.equal(65536, size)
    for _ in image:stream "/t/big" do break end
    raises("not_found", image.stream, image, "/t/nonesuch")
    local dir = scratch.dir()
    assert.equal(dir .. "/a.txt", image:download("/t/a.txt", dir))
    assert.equal(dir .. "/a.txt", image:download("/t/a.txt", dir .. "/"))
    local path, result = image:download("/t", dir .. "/copy")
    assert.equal(dir .. "/copy", path)
    assert.is_true(result.files >= 8)
    assert.equal("fifo\n", scratch.sh("test -p " .. path .. "/pipe && echo fifo"))
    assert.equal("one\ntwo Beta\nthree\n", io.open(path .. "/sub/b.txt"):read "a")
    assert.equal("/etc/passwd\n", scratch.sh("readlink " .. path .. "/out"))
    raises("exists", image.download, image, "/t", dir .. "/copy/sub/../../a.txt")
    assert.equal(dir .. "/copy/t", (image:download("/t", dir .. "/copy")))
    assert.equal("a.txt\ncopy\n", scratch.sh("ls -A " .. dir))
  end)

  it("L9.36 download into a directory uses the base name; a failing download leaves no file", function()
    local dir = scratch.dir()
    assert.equal(dir .. "/a.txt", image:download("/t/a.txt", dir))
    raises("not_found", image.download, image, "/t/nonesuch", dir)
    raises("not_found", image.download, image, "/t/a.txt", dir .. "/missing/x")
    raises("not_found", image.download, image, "/t", dir .. "/missing/x")
    assert.equal("a.txt\n", scratch.sh("ls -A " .. dir))
  end)

  it("downloads to the longest names there are", function()
    local dir = scratch.dir()
    local name = ("n"):rep(254)
    assert.equal(dir .. "/f" .. name, image:download("/t/a.txt", dir .. "/f" .. name))
    assert.equal(dir .. "/d" .. name, (image:download("/t/sub", dir .. "/d" .. name)))
    assert.equal("2\n", scratch.sh("ls -A " .. dir .. " | wc -l"))
    for _, source in ipairs { "/t/a.txt", "/t/sub" } do
      local good, problem = pcall(image.download, image, source, dir .. "/xx" .. name)
      assert.is_false(good)
      assert.match(dir .. "/xx" .. name .. ": ", problem.message, 1, true)
    end
    assert.equal("2\n", scratch.sh("ls -A " .. dir .. " | wc -l"))
  end)

  it("names the directory that a download would need", function()
    local dir = scratch.dir()
    for _, source in ipairs { "/t/a.txt", "/t/sub" } do
      for _, destination in ipairs { "/no/x", "/no/" } do
        local problem = raises("not_found", image.download, image, source, dir .. destination)
        assert.equal(('there is no directory "%s/no"'):format(dir), problem.message)
      end
    end
    assert.equal("", scratch.sh("ls -A " .. dir))
  end)

  it("raises under the name of the method", function()
    for _, op in ipairs { "stat", "walk", "entries", "ls", "read", "stream", "download" } do
      assert.equal(op, raises("not_found", image[op], image, "/nonesuch").op)
    end
    assert.equal("find", raises("not_found", image.find, image, { path = "/nonesuch" }).op)
    local problem = raises("timeout", bough.deadline, 1e-6, function() while true do image:stat "/t" end end)
    assert.equal("deadline", problem.op)
  end)

  it("greps within bounds of bytes and time", function()
    local many = base:run [[i=0; while [ $i -lt 2000 ]; do echo "line $i of many"; i=$((i+1)); done >/many]]
    local all = many:grep("many", { path = "/many" })
    assert.same({ 2000, false, 1 }, { #all.matches, all.truncated, all.files })
    local some = many:grep("many", { path = "/many", max_bytes = 1000 })
    assert.is_true(some.truncated)
    assert.is_nil(some.files)
    local bytes = 0
    for i, match in ipairs(some.matches) do
      bytes = bytes + #match.line
      assert.equal(all.matches[i].line, match.line)
    end
    assert.is_true(bytes <= 1000 and bytes > 900)
    assert.is_false(many:grep("many", { path = "/many", seconds = 60 }).truncated)
    local none = many:grep("many", { path = "/many", seconds = 1e-6 })
    assert.same({ 0, true }, { #none.matches, none.truncated })
    -- a deadline of the caller's is the caller's
    raises("timeout", bough.deadline, 1e-6, function() many:grep("many", { seconds = 60 }) end)
    for _, opts in ipairs { { seconds = 0 }, { seconds = "x" }, { max_bytes = 0 }, { max_bytes = {} } } do
      raises("invalid", many.grep, many, "x", opts)
    end
    assert.is_true(image:grep("alpha").matches[1].unended == nil)
    local open = base:run "printf 'first\nlast' >/open"
    assert.same({ nil, true }, { open:grep("t$", { path = "/open" }).matches[1].unended,
      open:grep("t$", { path = "/open" }).matches[2].unended })
  end)

  it("makes archives of files and trees", function()
    local function archive(path)
      local parts = {}
      for piece in image:archive(path) do parts[#parts + 1] = piece end
      return scratch.file(table.concat(parts))
    end
    local function listed(path) return scratch.sh("tar --quoting-style=escape -tf " .. archive(path)) end
    assert.equal("t/sub/\nt/sub/b.txt\nt/sub/deep/\nt/sub/in\n", listed "/t/sub")
    assert.equal("t/lnk/\nt/lnk/b.txt\nt/lnk/deep/\nt/lnk/in\n", listed "/t/lnk")
    assert.equal("t/a.txt\n", listed "t/a.txt")
    assert.match("^bin/\n", listed())
    assert.match("%f[^\n%z]t/a.txt\n", listed "/")
    assert.equal("alpha beta\n", scratch.sh("tar -xOf " .. archive "/t" .. " t/a.txt"))
    assert.match("^%-rwsr%-x%-%-%- ", scratch.sh("tar -tvf " .. archive "/t/a.txt"))
    for path, kind in pairs { ["/nonesuch"] = "not_found", ["/t/pipe"] = "invalid", ["/t/../t"] = "invalid" } do
      assert.equal("archive", raises(kind, image.archive, image, path).op)
    end
    for _ in image:archive "/" do break end -- ends it
    assert.equal("alpha beta\n", image:read "/t/a.txt")
  end)

  it("refuses empty arrays", function()
    for _, opts in ipairs { { name = {} }, { kind = {} } } do
      assert.match("an empty one", raises("invalid", image.find, image, opts).message)
    end
    assert.match("an empty one", raises("invalid", image.grep, image, {}).message)
    for _, opts in ipairs { { path = {} }, { glob = {} } } do
      assert.match("an empty one", raises("invalid", image.grep, image, "x", opts).message)
    end
  end)
end)
