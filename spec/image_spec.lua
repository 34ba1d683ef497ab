local bough = require "bough"
local core = require "bough.core"
local fake = require "spec.support.fake_engine"
local full = require "spec.support.fake_full"
local raises = require "spec.support.raises"

describe("bough.image", function()
  local box, driver, base

  before_each(function()
    box, driver = fake.open()
    base = fake.base(box)
  end)

  after_each(function() box:close() end)

  describe("run", function()
    it("returns a new finished image and leaves the source as it was", function()
      local one = base:run { shell = "write /a 1;echo first" }
      local two = base:run { shell = "write /a 2;echo second" }
      assert.equal("succeeded", one.state)
      assert.equal("1", one:read "/a")
      assert.equal("2", two:read "/a")
      assert.equal("first\n", one.stdout)
      assert.equal(base.uuid, one.parent_uuid)
      assert.not_equal(one, two)
      raises("not_found", base.read, base, "/a")
      assert.equal("pulled", base.state)
    end)

    it("takes a non-zero exit as a result", function()
      local failed = base:run "exit 3"
      assert.equal(3, failed.exit_code)
      assert.is_false(failed.ok)
      assert.is_string(failed.uuid)
    end)

    it("raises exit with check, with the result and the last line of stderr", function()
      local problem = raises("exit", base.run, base,
        "echo out;warn first;warn no rule to make target;exit 2", { check = true })
      assert.match('^run "echo out.*": exit code 2 %(last line of stderr: "no rule to make target"%)$',
        tostring(problem))
      assert.equal(2, problem.result.exit_code)
      assert.equal("out\n", problem.result.stdout)
    end)

    it("takes a time limit as a result, and raises timeout with check", function()
      local late = base:run("echo so far;sleep 5", { timeout = 0.02 })
      assert.is_true(late.timed_out)
      assert.equal(137, late.exit_code)
      assert.equal("so far\n", late.stdout)
      assert.is_string(late.uuid)
      local problem = raises("timeout", base.run, base, "echo so far;sleep 5",
        { timeout = 0.02, check = true })
      assert.equal("so far\n", problem.result.stdout)
    end)

    it("names the signal that killed a command", function()
      assert.equal(9, base:run("kill 9").signal)
      assert.match("exit code 137, killed by signal 9",
        tostring(raises("exit", base.run, base, "kill 9", { check = true })))
    end)

    it("starts nothing when the options are wrong", function()
      raises("invalid", base.run, base, {})
      raises("invalid", base.run, base, { "x", timout = 1 })
      raises("invalid", base.run, base, { "x", tag = "t", disposable = true })
      assert.is_nil(driver.calls.start)
    end)

    it("raises what kept the command from starting", function()
      raises("not_found", base.run, base, "nostart")
      assert.equal(0, driver.live)
    end)

    it("names what is still to come", function()
      assert.match("files", tostring(raises("unsupported", base.run, base, { "x", files = { "a" } })))
      raises("unsupported", base.run, base, { "x", pty = true })
      raises("unsupported", base.run, base, { "x", cache = true })
      raises("unsupported", base.run, base, { "x", network = "nat" })
    end)

    it("tags the result, but not of a command that fails its check", function()
      assert.equal("good", base:run("noop", { tag = "good" }).tag)
      raises("exit", base.run, base, "exit 1", { tag = "good", check = true })
      assert.equal(0, box.images:get("good").exit_code)
      assert.equal("good", base:run("noop", { tag = "good", check = true }).tag)
      assert.is_nil(base:run("noop").tag)
    end)

    it("kills the command when its task is cancelled", function()
      local task = bough.spawn(function() base:run "sleep 60" end)
      bough.sleep(0.02)
      assert.equal(1, driver.live)
      task:cancel()
      raises("cancelled", task.wait, task)
      assert.equal(0, driver.live)
    end)

    it("says so when it was called with a dot", function()
      assert.match("image:run%(", tostring(raises("invalid", base.run, { "x" })))
    end)
  end)

  describe("start and wait", function()
    it("returns while the command runs; no result before its end", function()
      local started = base:start { shell = "sleep 0.02;echo done" }
      assert.equal("executing", started.state)
      assert.is_nil(started.uuid)
      assert.is_nil(started.tag)
      assert.is_nil(started.stdin)
      for _, name in ipairs { "result", "stdout", "stderr", "exit_code", "elapsed_time", "ok" } do
        raises("state", function() return started[name] end)
      end
      raises("state", started.run, started, "noop")
      raises("state", started.read, started, "/etc/motd")
      assert.equal(started, started:wait())
      assert.equal("done\n", started.stdout)
    end)

    it("gives the same each time, from one execution", function()
      local started = base:start "echo x"
      assert.is_true(rawequal(started:wait(), started:wait()))
      assert.equal(1, driver.calls.start)
      local bad = base:start("exit 1", { check = true })
      local first = raises("exit", bad.wait, bad)
      assert.is_true(rawequal(first, raises("exit", bad.wait, bad)))
      assert.equal("failed", bad.state)
      assert.equal(1, bad.exit_code)
    end)

    it("lets the run go on when only the waiter is cancelled", function()
      local started = base:start "sleep 0.05;echo x"
      local waiter = bough.spawn(function() started:wait() end)
      bough.sleep(0.01)
      waiter:cancel()
      raises("cancelled", waiter.wait, waiter)
      assert.equal("executing", started.state)
      assert.equal("x\n", started:wait().stdout)
    end)

    it("raises the run's own failure, each time", function()
      local started = base:start "stuck"
      raises("io", started.wait, started)
      raises("io", started.wait, started)
      raises("state", function() return started.stdout end)
      raises("state", started.run, started, "noop")
    end)

    it("returns a finished image at once, and refuses one that no run made", function()
      local done = base:run "noop"
      assert.is_true(rawequal(done, done:wait()))
      raises("state", base.wait, base)
    end)
  end)

  describe("close", function()
    it("kills; whoever waits gets cancelled", function()
      local started = base:start "sleep 60"
      local waiter = bough.spawn(function() return pcall(started.wait, started) end)
      bough.sleep(0.01)
      started:close()
      local good, problem = waiter:wait()
      assert.is_false(good)
      assert.equal("cancelled", problem.kind)
      assert.equal(0, driver.live)
      started:close()
      assert.equal(1, driver.calls.kill)
    end)

    it("happens at the end of a scope", function()
      do
        local _ <close> = base:start "sleep 60"
        assert.equal(1, driver.live)
      end
      assert.equal(0, driver.live)
    end)
  end)

  describe("a disposable run's image", function()
    it("has a result and no uuid; whatever needs a tree raises disposed", function()
      local gone = base:run { "noop", disposable = true }
      assert.is_nil(gone.uuid)
      assert.equal(0, gone.exit_code)
      for _, call in ipairs { { "run", "noop" }, { "ls", "/" }, { "read", "/etc/motd" }, { "tag_as", "x" },
        { "session" }, { "start", "noop" }, { "untag" }, { "apply_files", "a" } } do
        raises("disposed", gone[call[1]], gone, call[2])
      end
    end)
  end)

  describe("fields", function()
    it("cannot be set", function()
      assert.match("image.tag", tostring(raises("invalid", function() base.tag = "x" end)))
      raises("invalid", function() base.anything = 1 end)
    end)

    it("hand out a fresh result each time", function()
      local done = base:run "echo x"
      done.result.exit_code = 99
      done.result.resources.max_rss = -1
      assert.equal(0, done.result.exit_code)
      assert.equal(0, done.result.resources.max_rss)
    end)

    it("raise state where no run made the image", function()
      raises("state", function() return base.stdout end)
      raises("state", function() return base.result end)
    end)

    it("can be listed", function()
      local seen = {}
      for name, value in pairs(base:run "echo x") do seen[name] = value end
      assert.equal("x\n", seen.stdout)
      assert.equal(0, seen.exit_code)
      for name in pairs(base) do assert.not_equal("result", name) end
    end)

    it("make images of the same uuid equal", function()
      assert.equal(base, box.images:get(base.uuid))
      assert.not_equal(base:run { "noop", disposable = true }, base:run { "noop", disposable = true })
    end)
  end)

  describe("config", function()
    local CONFIG = [[{"env":["PATH=/bin","LANG=C","BAD","=x"],"cwd":"/srv","user":"33:33",
      "entrypoint":["/entry","-v"],"cmd":["serve"],
      "labels":{"a":"b"},"os":"linux","architecture":"amd64","exposed_ports":null}]]

    local function with(config)
      driver.config = config
      local image = box.images:import "/tmp"
      return image
    end

    it("is a table that changes nothing, empty where there is none", function()
      assert.same({ env = {} }, base.config)
      local image = with(CONFIG)
      assert.same({
        env = { PATH = "/bin", LANG = "C" }, cwd = "/srv", user = "33:33", entrypoint = { "/entry", "-v" },
        cmd = { "serve" }, labels = { a = "b" }, os = "linux", architecture = "amd64",
      }, image.config)
      image.config.env.PATH = "x"
      assert.equal("/bin", image.config.env.PATH)
    end)

    it("goes under the options of sessions and runs", function()
      local image = with(CONFIG)
      image:run "noop"
      local spec = driver.last_spec
      assert.same({ PATH = "/bin", LANG = "C" }, spec.env)
      assert.same({ "/srv", "33:33" }, { spec.cwd, spec.user })
      image:run { shell = "noop", env = { LANG = false, A = 1 }, cwd = "/", user = "0" }
      assert.same({ PATH = "/bin", LANG = false, A = "1" }, driver.last_spec.env)
      assert.same({ "/", "0" }, { driver.last_spec.cwd, driver.last_spec.user })
      image:session({ cwd = "/home", env = { LANG = "de" } }):run "noop"
      assert.same({ PATH = "/bin", LANG = "de" }, driver.last_spec.env)
      assert.equal("/home", driver.last_spec.cwd)
    end)

    it("goes on to what runs leave", function()
      local image = with(CONFIG)
      assert.equal("/srv", image:run("noop"):run("noop").config.cwd)
      assert.equal("/srv", image:start("noop"):wait().config.cwd)
      assert.equal("/srv", image:session():run("noop").config.cwd)
    end)

    it("is what a run without a command runs", function()
      local image = with(CONFIG)
      image:run {}
      assert.same({ "/entry", "-v", "serve" }, driver.last_spec.argv)
      image:run { args = { "help" }, timeout = 5 }
      assert.same({ "/entry", "-v", "help" }, driver.last_spec.argv)
      image:run { "prog" }
      assert.same({ "prog" }, driver.last_spec.argv)
      local other = with [[{"cmd":["sh"]}]]
      other:run {}
      assert.same({ "sh" }, driver.last_spec.argv)
      assert.match("no entrypoint", raises("invalid", other.run, other, { args = { "x" } }).message)
      raises("invalid", base.run, base, {})
      raises("invalid", base.run, base, { args = { "x" } })
    end)

    it("is left out where it makes no sense", function()
      for _, config in ipairs { "null", "[", "5",
        [[{"env":5,"cwd":7,"user":null,"cmd":"sh","entrypoint":[1]}]],
        [[{"env":[null],"cwd":"","user":"","cmd":[""],"entrypoint":[]}]], ("["):rep(1000) } do
        local image = with(config)
        image:run "noop"
        assert.is_nil(driver.last_spec.cwd)
        raises("invalid", image.run, image, {})
        assert.same({ env = {} }, image.config)
      end
      local relative = with [[{"cwd":"app"}]]
      assert.equal("/app", relative.config.cwd)
    end)
  end)

  describe("tostring", function()
    it("is one line in every state", function()
      assert.equal(("image %s… \"busybox\""):format(base.uuid:sub(1, 6)), tostring(base))
      assert.match("^image %x+… exit 3$", tostring(base:run "exit 3"))
      assert.match("exit 137 timed out$", tostring(base:run("sleep 1", { timeout = 0.01 })))
      assert.equal("image disposable exit 0", tostring(base:run { "noop", disposable = true }))
      local started = base:start "stuck"
      assert.equal('image executing "stuck"', tostring(started))
      pcall(started.wait, started)
      assert.equal("image failed", tostring(started))
    end)
  end)

  describe("tag_as", function()
    it("L9.38 returns the image under its tag; tag_as(nil) equals untag", function()
      local done = base:run "echo x"
      local tagged = done:tag_as "mine"
      assert.equal("mine", tagged.tag)
      assert.equal("x\n", tagged.stdout)
      assert.equal(done, tagged)
      assert.is_nil(done.tag)
      assert.is_nil(tagged:tag_as(nil).tag)
      raises("not_found", box.images.get, box.images, "mine")
      raises("invalid", done.tag_as, done, "a b")
    end)
  end)

  describe("parent and children", function()
    it("lead along the tree", function()
      local one, two = base:run "echo 1", base:run "echo 2"
      assert.is_nil(base:parent())
      assert.equal(base, one:parent())
      local children = base:children()
      assert.same({ one.uuid, two.uuid }, { children[1].uuid, children[2].uuid })
      assert.equal("1\n", children[1].stdout)
      assert.same({}, one:children())
    end)
  end)

  describe("ls", function()
    it("lists entries sorted by name, bound to the image", function()
      local image = base:run "write /d/b 1;write /d/a 22;write /d/sub/x 3"
      local entries = image:ls "/d"
      assert.same({ "a", "b", "sub" }, { entries[1].name, entries[2].name, entries[3].name })
      assert.equal("/d/a", entries[1].full_path)
      assert.equal("22", entries[1]:read())
      assert.equal("0644", entries[1].mode_string)
      assert.is_true(entries[1].is_file)
      assert.is_true(entries[3].is_dir)
      assert.equal("/d/sub/x", tostring(entries[3]:ls()[1]))
      raises("not_found", image.ls, image, "/nonesuch")
    end)

    it("walks the tree, parents first", function()
      local image = base:run "write /d/b 1;write /d/sub/x 3"
      local seen = {}
      for found in image:walk "/d" do seen[#seen + 1] = found.full_path end
      assert.same({ "/d/b", "/d/sub", "/d/sub/x" }, seen)
    end)
  end)

  describe("download", function()
    local here = os.tmpname()
    after_each(function() os.remove(here) end)

    it("writes the file and says where", function()
      local image = base:run "write /a/f some data"
      assert.equal(here, image:download("/a/f", here))
      local file <close> = io.open(here, "rb")
      assert.equal("some data", file:read "a")
    end)

    it("leaves nothing when it fails", function()
      os.remove(here)
      raises("not_found", base.download, base, "/nonesuch", here)
      assert.is_nil(io.open(here))
      raises("not_found", base.download, base, "/etc/motd", here .. "/missing/x")
      raises("invalid", base.download, base, "/", here)
    end)

    it("puts it into a directory under its own name", function()
      local directory = here:match "^(.*)/"
      local image = base:run("write /" .. here:match "([^/]+)$" .. " x")
      assert.equal(here, image:download(here:match "([^/]+)$", directory))
    end)
  end)

  describe("stream", function()
    it("yields the content in pieces", function()
      local image = base:run("write /big " .. ("x"):rep(100000))
      local pieces = {}
      for chunk in image:stream "/big" do pieces[#pieces + 1] = chunk end
      assert.equal(2, #pieces)
      assert.equal(100000, #table.concat(pieces))
    end)
  end)

  describe("what an engine may lack", function()
    it("is unsupported until the engine has it", function()
      for _, name in ipairs { "popen", "boot", "export", "grep", "stat" } do
        raises("unsupported", base[name], base, "x")
      end
      raises("unsupported", base.diff, base, base)
      raises("unsupported", base.apply_files, base, "a")
      assert.is_true(rawequal(base, base:apply_files()))
      assert.is_true(rawequal(base, base:apply_files {}))
    end)

    it("is called once it has", function()
      local booted
      local sandbox = {
        hosts = true, live = 0, stopped = false, closed = false,
        started = function() end, close = function(self) self.closed = true end,
      }
      local other = fake.open { boot = function(_, uuid, spec)
        booted = { uuid = uuid, hostname = spec.hostname, disposable = spec.disposable }
        return sandbox
      end }
      local image = fake.base(other)
      local instance <close> = image:boot { hostname = "h" }
      assert.same({ uuid = image.uuid, hostname = "h", disposable = false }, booted)
      assert.equal("running", instance.state)
      instance:close()
      assert.is_true(sandbox.closed)
    end)
  end)
end)

describe("bough.images", function()
  local box, driver

  before_each(function() box, driver = fake.open() end)
  after_each(function() box:close() end)

  describe("use", function()
    it("builds busybox on first use, once, whoever asks", function()
      local found = {}
      bough.run(function()
        local tasks = {}
        for i = 1, 3 do tasks[i] = bough.spawn(function() return box.images:use "busybox" end) end
        for i, task in ipairs(tasks) do found[i] = task:wait() end
      end)
      assert.equal(1, driver.calls.import)
      assert.equal(found[1], found[3])
      assert.equal("busybox", found[1].tag)
      assert.same({ "/bin/busybox", "--install", "-s" }, driver.last_spec.argv)
      assert.equal(found[1], box.images:use(found[1].uuid))
    end)

    it("tags no busybox that could not be set up", function()
      driver.start = function() error(core.error("io", "no", {}), 0) end
      raises("io", box.images.use, box.images, "busybox")
      assert.is_nil(driver:resolve "busybox")
    end)

    it("imports a path, once when it is given a tag", function()
      box.images:use("/tmp", { tag = "tmp" })
      assert.same({ kind = "directory", source = "/tmp", tag = "tmp" }, driver.last_import)
      box.images:use("/tmp", { tag = "tmp" })
      assert.equal(1, driver.calls.import)
    end)

    it("raises not_found for what is nowhere, and imports nothing when strict", function()
      local images = box.images
      raises("not_found", images.use, images, "nonesuch")
      raises("not_found", images.use, images, "/nonesuch/path")
      raises("not_found", images.use, images, "busybox", { strict = true })
      raises("not_found", images.use, images, "00000000-0000-4000-8000-000000000000")
      raises("invalid", images.use, images, "")
      raises("invalid", images.use, images, nil)
      raises("not_found", images.use, images, "docker.io/library/debian:12", { strict = true })
      assert.is_nil(driver.calls.import)
    end)
  end)

  describe("get", function()
    it("finds by tag and uuid, and hints at a near tag", function()
      local base = fake.base(box)
      assert.equal(base, box.images:get "busybox")
      assert.equal(base, box.images:get(base.uuid:upper()))
      assert.match('did you mean "busybox"',
        tostring(raises("not_found", box.images.get, box.images, "bussybox")))
    end)
  end)

  describe("import", function()
    it("tells directories from archives by looking", function()
      local file = os.tmpname()
      box.images:import(file, { tag = "a" })
      os.remove(file)
      assert.equal("archive", driver.last_import.kind)
      box.images:import "/tmp"
      assert.equal("directory", driver.last_import.kind)
      box.images:import "busybox"
      assert.equal("busybox", driver.last_import.kind)
    end)

    it("L9.40 refuses half a credential pair, and a uuid", function()
      local images = box.images
      assert.match("password is missing",
        raises("invalid", images.import, images, "localhost:1/x", { username = "me" }).message)
      raises("invalid", images.import, images, "localhost:1/x", { password = "x" })
      assert.match("is a uuid", raises("invalid", images.import, images,
        "00000000-0000-4000-8000-000000000000").message)
      assert.is_nil(driver.calls.import)
    end)

    it("names what is missing or wrong", function()
      local images = box.images
      assert.match('"/nonesuch.tar"', tostring(raises("not_found", images.import, images, "/nonesuch.tar")))
      raises("invalid", images.import, images, "00000000-0000-4000-8000-000000000000")
      raises("invalid", images.import, images, "")
      raises("invalid", images.import, images, "/tmp", { tga = "x" })
    end)
  end)

  describe("list", function()
    it("L9.39 gives 100 by default, newest first, all for math.huge", function()
      local base = fake.base(box)
      for _ = 1, 120 do base:run "noop" end
      assert.equal(100, #box.images:list())
      assert.equal(121, #box.images:list { number = math.huge })
      assert.equal(5, #box.images { number = 5 })
      assert.equal("busybox", box.images:list({ number = math.huge })[121].tag)
    end)

    it("filters", function()
      local base = fake.base(box)
      local child = base:run "echo hello"
      assert.same({ base.uuid }, { box.images:list({ tagged = true })[1].uuid })
      assert.equal(1, #box.images:list { tag = "busybox" })
      assert.equal("hello\n", box.images:list({ parent = base })[1].stdout)
      assert.equal(1, #box.images:list { parent = base.uuid, since = child.created_at })
      assert.equal(0, #box.images:list { parent = base, before = child.created_at })
      box.images:list { tag = "b*" }
      assert.equal("b*", driver.last_filter.tag_glob)
    end)

    it("filters by the beginning of a uuid, leaves some out, and puts one first", function()
      fake.base(box)
      box.images:list { uuid = "0A1b-", offset = 7, first = "busybox" }
      assert.equal("0a1b-", driver.last_filter.uuid_prefix)
      assert.equal(7, driver.last_filter.offset)
      assert.equal("busybox", driver.last_filter.tag_first)
      for _, filter in ipairs { { uuid = "x" }, { uuid = 5 }, { uuid = ("0"):rep(37) }, { offset = -1 },
        { offset = math.huge }, { first = "a b" } } do
        raises("invalid", box.images.list, box.images, filter)
      end
    end)

    it("takes times relative to now", function()
      box.images:list { since = "1h" }
      assert.is_true(math.abs(driver.last_filter.since - (os.time() - 3600)) < 3)
      box.images:list { since = { ago = 60 }, ["until"] = "1.5m" }
      assert.is_true(math.abs(driver.last_filter.since - (os.time() - 60)) < 3)
      assert.is_true(math.abs(driver.last_filter.before - (os.time() - 90)) < 3)
    end)

    it("raises for filters that cannot be", function()
      for _, filter in ipairs { { number = 0 }, { number = 1.5 }, { since = "soon" },
        { since = { ago = -1 } }, { parent = "x" }, { tagged = 1 }, { tagg = "x" },
        { before = 1, ["until"] = 1 }, "x" } do
        raises("invalid", box.images.list, box.images, filter)
      end
    end)
  end)

  describe("iter", function()
    it("L9.39 fetches pages as needed, and not what came later", function()
      local base = fake.base(box)
      for _ = 1, 250 do base:run "noop" end
      local seen, count = {}, 0
      driver.calls.list = 0
      for image in box.images:iter() do
        assert.is_nil(seen[image.uuid])
        seen[image.uuid] = true
        count = count + 1
        if count == 100 then base:run "noop" end
      end
      assert.equal(251, count)
      assert.equal(3, driver.calls.list)
    end)

    it("L9.39 asks for no page before it is wanted, nor after a break", function()
      local base = fake.base(box)
      for _ = 1, 150 do base:run "noop" end
      driver.calls.list = 0
      local first = box.images:iter()()
      assert.equal("noop", first.command)
      assert.equal(1, driver.calls.list)
      local count = 0
      for _ in box.images:iter { number = 120 } do count = count + 1 end
      assert.equal(120, count)
    end)
  end)
end)

describe("bough.engine", function()
  describe("open", function()
    it("refuses what it does not know", function()
      assert.match("known are", tostring(raises("unsupported", bough.open, "ftp://x")))
      assert.match("not available yet", tostring(raises("unsupported", bough.open, "docker://")))
      raises("invalid", bough.open, "busybox")
      raises("invalid", bough.open, 5)
      raises("invalid", bough.open, "local", { hoem = "/x" })
      raises("invalid", bough.open, { spare = -1 })
      raises("invalid", bough.open, "/a", { home = "/b" })
    end)

    it("opens the embedded engine for nothing, a path and a local URL", function()
      local open_local, asked = core.open_local, {}
      core.open_local = function(opts)
        asked[#asked + 1] = opts
        return fake.new()
      end
      finally(function() core.open_local = open_local end)
      bough.open()
      bough.open("local", { spare = 2, limits = { memory = "1M" } })
      bough.open "local:///srv/store"
      bough.open "./store"
      bough.open { home = "/h" }
      assert.same({ {}, { spare = 2, limits = { memory = 1 << 20 } }, { home = "/srv/store" },
        { home = "./store" }, { home = "/h" } }, asked)
    end)
  end)

  describe("close", function()
    it("ends runs and sessions; every later call raises closed", function()
      local box, driver = fake.open()
      local base = fake.base(box)
      local started = base:start "sleep 60"
      local session = base:session()
      box:close()
      box:close()
      assert.is_true(box.closed)
      assert.is_true(driver.closed)
      assert.equal(0, driver.live)
      assert.equal("closed", session.state)
      raises("cancelled", started.wait, started)
      raises("closed", base.run, base, "noop")
      raises("closed", box.info, box)
      raises("closed", box.gc, box)
      raises("closed", box.session, box, "busybox")
      raises("closed", box.images.list, box.images)
      raises("closed", base.session, base)
      assert.match("closed", tostring(box))
    end)
  end)

  describe("tree", function()
    local box, base
    before_each(function()
      box = fake.open()
      base = fake.base(box)
    end)
    after_each(function() box:close() end)

    local function shape(text) return (text:gsub("%x%x%x%x%x%x  ", "")) end

    it("draws images under what they were made from", function()
      local one = base:run("exit 3", { tag = "one" })
      one:run "noop"
      base:run("sleep 9", { timeout = 0.01 })
      assert.equal([["busybox"  import  0 bytes
├─ "one"  exit 3  0 bytes  exit 3
│  └─ exit 0  0 bytes  noop
└─ exit 137  timed out  0 bytes  sleep 9
]], shape(box:tree()))
      assert.equal([["one"  exit 3  0 bytes  exit 3
`- exit 0  0 bytes  noop
]], shape(box:tree { root = "one", ascii = true }))
      assert.equal(box:tree { root = one }, box:tree { root = one.uuid })
    end)

    it("stops where it is told to, and says what is left out", function()
      local image = base
      for _ = 1, 20 do image = image:run "noop" end
      local lines = select(2, box:tree():gsub("\n", ""))
      assert.equal(21, lines)
      assert.match("… 18 more: [^\n]*\n$", box:tree { max = 3 })
      assert.equal(21, (select(2, box:tree({ max = 3, all = true }):gsub("\n", ""))))
      raises("invalid", box.tree, box, { max = 0 })
      raises("invalid", box.tree, box, { roof = "x" })
      assert.equal("tree", raises("not_found", box.tree, box, { root = "nonesuch" }).op)
    end)

    it("is empty for an empty store", function()
      local empty <close> = fake.open()
      assert.equal("", empty:tree())
    end)
  end)

  describe("compact", function()
    it("asks for one image, or for those that nothing was made from", function()
      local box <close>, driver = fake.open(full)
      local base = fake.base(box)
      local one, two = base:run "noop", base:run "noop"
      assert.equal("compact", raises("not_found", box.compact, box, "nonesuch").op)
      assert.same({ merged = 2 }, box:compact(one))
      assert.same({ one.uuid }, driver.compacted)
      driver.compacted = {}
      local events = {}
      local function watch(event) events[#events + 1] = event end
      assert.same({ merged = 4 }, box:compact { on_progress = watch })
      table.sort(driver.compacted)
      local expected = { one.uuid, two.uuid }
      table.sort(expected)
      assert.same(expected, driver.compacted)
      assert.same({ "compact", "merges" }, { events[1].op, events[1].unit })
      local plain <close> = fake.open()
      assert.same({ merged = 0 }, plain:compact())
    end)
  end)

  describe("files", function()
    it("is unsupported until the engine has it", function()
      local box <close> = fake.open()
      raises("unsupported", box.files.upload, box.files, "x")
      raises("unsupported", box.files.exists, box.files, ("0"):rep(64))
      assert.match("^files of engine", tostring(box.files))
      raises("invalid", function() box.files.x = 1 end)
    end)
  end)

  describe("gc", function()
    it("keeps the histories of live sessions and what commands run in", function()
      local box <close>, driver = fake.open()
      local base = fake.base(box)
      local session = box:session "busybox"
      local kept = session:run "noop"
      local started <close> = kept:start "sleep 60"
      local closed = base:session()
      local dropped = closed:run "noop"
      closed:close()
      box:gc()
      local keep = {}
      for _, uuid in ipairs(driver.last_keep) do keep[uuid] = true end
      assert.is_true(keep[base.uuid])
      assert.is_true(keep[kept.uuid])
      assert.is_nil(keep[dropped.uuid])
      assert.equal(started.parent_uuid, kept.uuid)
    end)
  end)
end)
