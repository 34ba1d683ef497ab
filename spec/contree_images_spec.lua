--- Images, files and looking into images on a ConTree service: against a stub with a small world in it.

local bough = require "bough"
local contree_api = require "bough.contree.api"
local contree_stub = require "spec.support.contree_stub"
local core = require "bough.core"
local driver = require "bough.contree.driver"
local engine = require "bough.engine"
local fixture = require "spec.engine.fixture"
local raises = require "spec.support.raises"
local scratch = require "spec.support.scratch"
local serve_process = require "spec.support.serve_process"

local BASE = "aaaaaaaa-0000-4000-8000-000000000000"
local NOWHERE = "bbbbbbbb-0000-4000-8000-000000000000"
local AT = 1788000000

local function uuid(n) return ("%08x-0000-4000-8000-%012x"):format(n, n) end

local function uuids(images)
  local all = {}
  for i, image in ipairs(images) do all[i] = image.uuid end
  return all
end

-- An operation that ran `echo N`, as text for the stub.
local OPERATION = [[
  local function ran(i, parent, more)
    local operation = { kind = "instance", status = "SUCCESS", at = 1788000000 + i - 0.5, image_uuid = parent,
      result_image_uuid = uuid(i), image_size = 100 + i, metadata = { command = "echo " .. i, shell = true,
        image = parent, result = {
          state = { exit_code = i % 2, signal = -1, timed_out = false },
          resources = { elapsed_time = 1.5, max_rss = 3 },
          stdout = { value = i .. "\n", encoding = "ascii" }, stderr = { value = "w6k=", encoding = "base64" } } } }
    for name, value in pairs(more or {}) do operation[name] = value end
    return operation
  end
]]

describe("on a contree service", function()
  local stub, box, handle

  lazy_setup(function() stub = contree_stub.start() end)
  lazy_teardown(function() stub:stop() end)

  local function open()
    local api = contree_api.new { url = stub.url, token = "stub-token-0123456789", retry = { pauses = { 0.005 } } }
    local made = driver.new(api)
    engine.schemes.stub = function() return made end
    local opened = engine.open "stub://"
    engine.schemes.stub = nil
    return opened, made
  end

  before_each(function() box, handle = open() end)

  after_each(function()
    box:close()
    stub:check()
  end)

  -- `settings`: text of the fields of the world, after what `prelude` does.
  local function serve(settings, prelude)
    stub:handle(('%s%s\nreturn require "spec.support.contree_world" { array = array, null = null, %s }')
      :format(OPERATION, prelude or "", settings))
  end

  -- The base image and what `tree` says is in it.
  local function serve_tree(tree, more)
    serve(([[images = { { uuid = %q, tag = "base", at = %d } }, trees = { [%q] = %s }, %s]])
      :format(BASE, AT, BASE, tree, more or ""))
  end

  -- How many of the requests since then had this in them.
  local function asked(text)
    local count = 0
    for _, entry in ipairs(stub:log()) do
      if (entry.method .. " " .. entry.target):find(text, 1, true) then count = count + 1 end
    end
    return count
  end

  local function requests() return #stub:log() end

  describe("images are found", function()
    local WORLD = ([[
      images = {
        { uuid = uuid(7), tag = "made/by:run", at = 1788000007.25, operation = uuid(107) },
        { uuid = uuid(8), at = 1788000008, operation = uuid(108) },
        { uuid = uuid(9), at = 1788000009, operation = uuid(109) },
        { uuid = uuid(10), at = 1788000010, operation = uuid(110) },
        { uuid = uuid(11), at = 1788000011, operation = uuid(111) },
        { uuid = uuid(12), at = 1788000012, operation = uuid(112) },
        { uuid = uuid(13), at = 1788000013, operation = uuid(113) },
        { uuid = %q, tag = "base", at = 1788000000 },
      },
      operations = {
        [uuid(107)] = ran(7, %q),
        [uuid(108)] = ran(8, uuid(7), { metadata = {
          command = "/bin/ls", args = { "-l", "two words" }, image = "x" } }),
        [uuid(109)] = { kind = "image_import", status = "SUCCESS", metadata = {
          registry = { url = "docker://docker.io/library/lua:5.4" } }, result_image_uuid = uuid(9) },
        [uuid(110)] = ran(10, uuid(7), { metadata = { command = ":", shell = true, image = "x",
          files = { ["/b"] = {}, ["/a"] = {} } } }),
        [uuid(111)] = ran(11, uuid(11), { metadata = { command = "/bin/sh", shell = false, image = "x",
          args = { "-c", 'exec "$@" 2>&1', "sh", "ls", "/" } } }),
        [uuid(113)] = ran(13, uuid(7), { metadata = { command = "read -r _ || :", shell = true, image = "x",
          result = { state = { exit_code = 0, signal = -1 } } } }),
      }]]):format(BASE, BASE)

    before_each(function() serve(WORLD) end)

    it("by tag and uuid, with what made them", function()
      for _, ref in ipairs { "made/by:run", "tag:made/by:run", uuid(7), uuid(7):upper() } do
        local image = box.images:get(ref)
        assert.equal(uuid(7), image.uuid)
        assert.equal("made/by:run", image.tag)
        assert.equal(BASE, image.parent_uuid)
        assert.equal(1788000007.25, image.created_at)
        assert.equal("run", image.origin)
        assert.equal("echo 7", image.command)
        assert.equal(107, image.size)
        assert.equal("7\n", image.stdout)
        assert.equal("\u{e9}", image.stderr)
        assert.equal(1, image.exit_code)
        assert.equal(3072, image.result.max_rss)
        assert.equal("succeeded", image.state)
        assert.equal("base", image:parent().tag)
      end
      assert.equal(1, asked("/operations/" .. uuid(107)))
      -- a tag may have moved
      assert.equal(2, asked "/inspect/?tag=made")
    end)

    it("and each gets its own result, which may be changed", function()
      local row = handle:resolve(uuid(7))
      row.result.stdout, row.result.resources.max_rss = "changed", -1
      assert.equal("7\n", handle:resolve(uuid(7)).result.stdout)
      assert.equal(3072, handle:resolve(uuid(7)).result.resources.max_rss)
    end)

    it("whatever made them", function()
      assert.equal("/bin/ls -l 'two words'", box.images:get(uuid(8)).command)
      local imported = box.images:get(uuid(9))
      assert.equal("import", imported.origin)
      assert.equal("import docker://docker.io/library/lua:5.4", imported.command)
      assert.equal("pulled", imported.state)
      raises("state", function() return imported.result end)
      local placed = box.images:get(uuid(10))
      assert.equal("files", placed.origin)
      assert.equal("files: /a, /b", placed.command)
      assert.equal(uuid(7), placed.parent_uuid)
      local same = box.images:get(uuid(11)) -- a run that changed nothing
      assert.equal("ls /", same.command)
      assert.is_nil(same.parent_uuid)
      local instance = box.images:get(uuid(13))
      assert.equal("commit", instance.origin)
      assert.equal(uuid(7), instance.parent_uuid)
      raises("state", function() return instance.exit_code end)
      local forgotten = box.images:get(uuid(12)) -- its operation is not kept any more
      assert.is_nil(forgotten.origin)
      assert.equal("pulled", forgotten.state)
      assert.equal("import", box.images:get "base".origin)
    end)

    it("not where there are none, and what is no tag is not asked for", function()
      assert.is_nil(handle:resolve(NOWHERE))
      assert.is_nil(handle:resolve "no-such")
      local before = requests()
      for _, ref in ipairs { "Upper", "a b", "/etc", "x/", "tag:", "\u{e9}", ("x"):rep(300) } do
        assert.is_nil(handle:resolve(ref))
      end
      assert.equal(before, requests())
      local problem = raises("not_found", box.images.get, box.images, "bose")
      assert.match('did you mean "base"', problem.message, 1, true)
    end)

    it("wherever the redirect says that they are", function()
      for _, location in ipairs { "%s/", "%s", "/sandboxes/v1/inspect/%s/", "http://elsewhere/v1/inspect/%s/?x=y#z" } do
        stub:handle(([[return function(request)
          if request.params.tag then return { status = 302, headers = { Location = %q } } end
          return { json = { uuid = %q, created_at = "2026-09-04T12:00:00Z" } }
        end]]):format(location:format(BASE), BASE))
        local row = handle:resolve "some"
        assert.equal(BASE, row.uuid)
        assert.equal("some", row.tag)
      end
      stub:handle [[return function() return { status = 302, headers = { Location = "/login" } } end]]
      raises("protocol", handle.resolve, handle, "some")
    end)
  end)

  describe("images are listed", function()
    -- `count` images, made by runs in the base; each tenth has a tag.
    local function serve_many(count, more)
      serve("images = images, operations = operations, " .. (more or ""), ([[
        local images, operations = {}, {}
        for i = %d, 1, -1 do
          local operation = uuid(1000000 + i)
          images[#images + 1] = { uuid = uuid(i), at = 1788000000 + i, operation = operation,
            tag = i %% 10 == 0 and ("%%s/%%d"):format(i %% 20 == 0 and "even" or "odd", i) or nil }
          operations[operation] = ran(i, i %% 3 == 0 and uuid(1) or %q)
        end
        images[#images + 1] = { uuid = %q, tag = "base", at = 1788000000 }
      ]]):format(count, BASE, BASE))
    end

    it("newest first, asking for nothing more than is wanted", function()
      serve_many(30)
      local images = box.images { number = 3 }
      assert.same({ uuid(30), uuid(29), uuid(28) }, uuids(images))
      assert.equal(1, requests())
      assert.match("limit=3", stub:log()[1].query, 1, true)
      assert.match("^image [^\n]*$", tostring(images[1]))
      local shown = {}
      for name in pairs(images[1]) do shown[#shown + 1] = name end
      table.sort(shown)
      assert.same({ "created_at", "tag", "uuid" }, shown)
      assert.equal(1, requests())
      -- what they lack is fetched when it is asked for, once
      assert.equal("30\n", images[1].stdout)
      assert.equal(0, images[1].exit_code)
      assert.equal(uuid(1), images[1].parent_uuid)
      assert.equal("even/20", box.images { tag = "even/20" }[1].tag)
      assert.equal("succeeded", images[2].state)
      assert.equal(2, asked "/operations/")
      assert.equal(0, asked "/inspect/0000001e")
    end)

    it("by tag, by patterns of tags, and with tags", function()
      serve_many(100)
      assert.same({ uuid(100), uuid(80) }, uuids(box.images { tag = "even/*", number = 2 }))
      assert.same({ uuid(60) }, uuids(box.images { tag = "even/6?" }))
      assert.same({ uuid(30), uuid(10) }, uuids(box.images { tag = "*d/[13]*" }))
      assert.same({}, box.images { tag = "even" })
      local before = requests()
      assert.same({}, box.images { tag = "Even/*" })
      assert.equal(before, requests())
      assert.equal(11, #box.images { tagged = true })
      assert.equal("base", box.images { tagged = true, before = AT + 10 }[1].tag)
      for _, entry in ipairs(stub:log()) do assert.not_match("tag=even%%2F&", entry.query) end
    end)

    it("from a time on, and before one, exactly", function()
      serve_many(30)
      assert.same({ uuid(30), uuid(29) }, uuids(box.images { since = AT + 29 }))
      assert.same({ uuid(2), uuid(1), BASE }, uuids(box.images { before = AT + 3 }))
      assert.same({ uuid(4), uuid(3) }, uuids(box.images { since = AT + 3, before = AT + 5 }))
      assert.same({}, box.images { since = 1e18 })
      assert.same({}, box.images { before = -5 })
      assert.equal(31, #box.images { since = -5, before = 1e18 })
      assert.same({ uuid(16) }, uuids(box.images { uuid = "00000010" }))
    end)

    it("from the end, without walking there", function()
      serve_many(3500)
      assert.same({ BASE, uuid(1), uuid(2) }, uuids(box.images { oldest_first = true, number = 3 }))
      assert.is_true(requests() < 10)
      local all = uuids(box.images { oldest_first = true, number = math.huge })
      assert.equal(3501, #all)
      for i = 2, #all do assert.equal(uuid(i - 1), all[i]) end
      assert.same({ uuid(10), uuid(20) }, uuids(box.images { oldest_first = true, tag = "*/*", number = 2 }))
    end)

    it("one after another, a page at a time, each once though they shift", function()
      -- with every request there is one more
      stub:handle [[
        local images = {}
        for i = 250, 1, -1 do images[#images + 1] = { uuid = uuid(i), at = 1788000000 + i } end
        local answer = require "spec.support.contree_world" { array = array, null = null, images = images }
        local last = 250
        return function(request)
          last = last + 1
          table.insert(images, 1, { uuid = uuid(last), at = 1788000000 + last })
          return answer(request)
        end]]
      local seen, before = {}, nil
      for image in box.images:iter() do
        seen[#seen + 1] = image.uuid
        assert.not_equal(before, image.uuid)
        before = image.uuid
      end
      assert.equal(251, #seen)
      for i, one in ipairs(seen) do assert.equal(uuid(252 - i), one) end
      box.images:iter()()
      assert.match("limit=100", stub:log()[requests()].query, 1, true)
      local all = uuids(box.images { number = 1500 })
      local once = {}
      for _, one in ipairs(all) do
        assert.is_nil(once[one])
        once[one] = true
      end
    end)

    it("a page at a time with a filter of ours, without beginning again", function()
      serve_many(900)
      local seen = 0
      for _ in box.images:iter { tag = "*/*" } do seen = seen + 1 end
      assert.equal(90, seen)
      seen = 0
      for _ in box.images:iter { parent = BASE } do seen = seen + 1 end
      assert.equal(600, seen)
      assert.is_true(requests() < 30)
    end)

    it("as children, few or many", function()
      serve_many(30)
      local base = box.images:get "base"
      local expected = {}
      for i = 1, 30 do
        if i % 3 ~= 0 then expected[#expected + 1] = uuid(i) end
      end
      assert.same(expected, uuids(base:children()))
      assert.same({ uuid(29), uuid(28) }, uuids(box.images { parent = base, number = 2 }))
      assert.same({ uuid(20), uuid(10) }, uuids(box.images { parent = base, tagged = true }))
      assert.same({ uuid(2), uuid(1) }, uuids(box.images { parent = base, before = AT + 3 }))
      assert.equal(10, #box.images:get(uuid(1)):children())
      assert.same({}, box.images:get(uuid(2)):children())
      assert.equal(base, base:children()[1]:parent())
      serve_many(600)
      expected = {}
      for i = 1, 600 do
        if i % 3 ~= 0 then expected[#expected + 1] = uuid(i) end
      end
      assert.same(expected, uuids(base:children()))
      assert.same({ uuid(599), uuid(598) }, uuids(box.images { parent = base, number = 2 }))
      assert.is_true(requests() < 12)
      assert.same({}, box.images { parent = NOWHERE })
      assert.same({ uuid(20) }, uuids(box.images { parent = base, tag = "even/20" }))
      assert.same({}, box.images { parent = base, tag = "odd/30" })
    end)

    it("as a tree", function()
      serve_many(6)
      local text = box:tree { ascii = true }
      assert.match("^aaaaaa  \"base\"  import", text)
      assert.match("|%- 000000  exit 1  101 bytes  echo 1\n|  |%- 000000  exit 1  103 bytes  echo 3\n", text)
      assert.match("more", box:tree { max = 2 }, 1, true)
    end)

    it("whole where they are wanted whole", function()
      serve_many(20)
      local rows = handle:list { limit = 20 }
      for i, row in ipairs(rows) do
        assert.equal(("%d\n"):format(21 - i), row.result.stdout)
        assert.is_nil(row.partial)
      end
    end)

    it("not where the answer is none", function()
      for _, body in ipairs { '{"images":7}', '{"other":[]}', '{"images":[7]}', '{"images":[{"tag":"x"}]}', "[" } do
        stub:handle(("return function() return { body = %q } end"):format(body))
        raises("protocol", box.images.list, box.images)
      end
      -- more than was asked for
      stub:handle [[return function() return { json = { images = { { uuid = uuid(1) }, { uuid = uuid(2) } } } } end]]
      raises("protocol", box.images.list, box.images, { number = 1 })
    end)
  end)

  describe("tags", function()
    before_each(function()
      serve(([[strict_untag = true, images = { { uuid = %q, tag = "base", at = 1 }, { uuid = uuid(1), at = 2 } }]])
        :format(BASE))
    end)

    it("are set, move and go", function()
      local base, other = box.images:get "base", box.images:get(uuid(1))
      assert.equal("team/base:2026-09", base:tag_as("team/base:2026-09").tag)
      assert.equal(base, box.images:get "team/base:2026-09")
      other:tag_as "team/base:2026-09"
      assert.equal(other, box.images:get "team/base:2026-09")
      assert.is_nil(box.images:get(BASE).tag)
      other:untag()
      other:untag() -- there is none: that is as it should be
      assert.is_nil(handle:resolve "team/base:2026-09")
    end)

    it("are refused before anything is sent where the service would not take them", function()
      local base = box.images:get "base"
      local before = requests()
      for _, tag in ipairs { "Upper", "a+b", "\u{e9}", "x:", "/x", "tag:x" } do
        local problem = raises("invalid", base.tag_as, base, tag)
        assert.match("lower-case letters", problem.message, 1, true)
      end
      assert.equal(before, requests())
    end)

    it("are of images that are there", function()
      local problem = raises("not_found", handle.tag, handle, NOWHERE, "x")
      assert.match(NOWHERE, problem.message, 1, true)
      raises("not_found", handle.untag, handle, NOWHERE)
    end)
  end)

  describe("imports", function()
    local function serve_import(more)
      serve(([[images = { { uuid = %q, at = 1 } }, outcome = { status = "SUCCESS", result_image_uuid = %q,
        result = { image = %q } }, %s]]):format(BASE, BASE, BASE, more or ""))
    end

    it("are done by the service, with a name and credentials, and once", function()
      serve_import [[imports = { "PENDING", "ASSIGNED", "EXECUTING" }]]
      local events = {}
      local image = box.images:import("ghcr.io/team/lua:5.4", {
        tag = "lua:5.4", username = "robot", password = "s3cret", timeout = 59.2,
        on_progress = function(event) events[#events + 1] = event end,
      })
      assert.equal(BASE, image.uuid)
      assert.equal("lua:5.4", image.tag)
      assert.equal("import", image.origin)
      assert.is_true(events[#events].finished)
      assert.equal("ghcr.io/team/lua:5.4", events[#events].item)
    end)

    it("send what the service wants to know", function()
      serve_import()
      box.images:use "docker.io/library/lua:5.4"
      for _, entry in ipairs(stub:log()) do
        if entry.path == "/images/import" then
          assert.same({ registry = { url = "docker://docker.io/library/lua:5.4" }, tag = "lua:5.4" },
            require "cjson".decode(entry.body))
        end
      end
      assert.equal(BASE, box.images:use "docker.io/library/lua:5.4".uuid)
      assert.equal(1, asked "POST")
    end)

    it("refuse what the service cannot do, before anything is sent", function()
      serve_import()
      local dir = scratch.dir()
      for _, call in ipairs {
        { dir }, { "busybox" }, { "docker.io/x", { platform = "linux/arm64" } }, { "docker.io/x", { insecure = true } },
        { "docker.io/x", { max_bytes = "1G" } },
      } do
        raises("unsupported", box.images.import, box.images, call[1], call[2])
      end
      raises("invalid", box.images.import, box.images, "docker.io/x:UP")
      raises("invalid", box.images.import, box.images, "docker.io/x", { tag = "UP" })
      assert.equal(0, requests())
      local problem = raises("not_found", box.images.use, box.images, "busybox")
      assert.match("docker.io/library/busybox", problem.message, 1, true)
      assert.equal(0, asked "POST")
    end)

    it("fail as the service says", function()
      serve [[outcome = { status = "FAILED", error = "manifest unknown", error_kind = "not_found" }]]
      local problem = raises("not_found", box.images.import, box.images, "docker.io/library/nothing")
      assert.match("manifest unknown", problem.message, 1, true)
      serve [[outcome = { status = "FAILED", error = "it broke" }]]
      raises("api", box.images.import, box.images, "docker.io/library/nothing")
      serve [[outcome = { status = "SUCCESS" }]]
      raises("protocol", box.images.import, box.images, "docker.io/library/nothing")
    end)

    it("are cancelled when nobody wants them any more", function()
      serve_import [[imports = { "PENDING", "PENDING", "PENDING", "PENDING", "PENDING", "PENDING", "PENDING" }]]
      raises("timeout", bough.deadline, 0.15, box.images.import, box.images, "docker.io/library/lua")
      stub:wait [[for _, entry in ipairs((...)) do if entry.method == "DELETE" then return true end end]]
    end)

    it("are cancelled when it is not even known what they are called", function()
      serve_import [[import_delay = 0.2]]
      raises("timeout", bough.deadline, 0.05, box.images.import, box.images, "docker.io/library/lua")
      stub:wait [[for _, entry in ipairs((...)) do if entry.method == "DELETE" then return true end end]]
    end)
  end)

  describe("files", function()
    local function item(path, more)
      local made = { kind = "file", path = path, uid = 0, gid = 0 }
      for name, value in pairs(more) do made[name] = value end
      return made
    end

    local function stage(...) return handle:stage({ ... }):wait() end

    it("are hashed, asked for and sent where they are not there, each content once", function()
      serve [[stored = { "known" }]]
      local path = scratch.file("from a file\n")
      local staged <close> = stage(item("/a", { content = "known" }), item("/b", { content = "new" }),
        item("/c", { content = "new", mode = 493, uid = 7, gid = 8 }), item("/d", { source = path, mode = -1 }),
        item("/e", { digest = core.sha256 "known" }), item("/empty", { content = "" }))
      assert.equal(6, staged.count)
      assert.equal(3, staged.copied_files)
      assert.equal(15, staged.copied_bytes)
      assert.equal(3, asked "POST")
      assert.equal(4, asked "GET")
      local function of(content)
        return ("%s-0000-4000-8000-000000000000"):format(core.sha256(content):sub(1, 8))
      end
      local spec = staged:spec()
      assert.same({ uuid = of "known", uid = 0, gid = 0, mode = "0644" }, spec["/a"])
      assert.same({ uuid = of "new", uid = 0, gid = 0, mode = "0644" }, spec["/b"])
      assert.same({ uuid = of "new", uid = 7, gid = 8, mode = "0755" }, spec["/c"])
      assert.equal(of "from a file\n", spec["/d"].uuid)
      assert.match("^0[0-7][0-7][0-7]$", spec["/d"].mode)
      assert.equal(of "known", spec["/e"].uuid)
      assert.equal(of "", spec["/empty"].uuid)
      -- the service is trusted to keep what it has said that it has
      stage(item("/a", { content = "known" }), item("/b", { content = "new" }))
      assert.equal(7, requests())
      assert.equal(staged.digest, stage(item("/e", { digest = core.sha256 "known" }), item("/b", { content = "new" }),
        item("/c", { content = "new", mode = 493, uid = 7, gid = 8 }), item("/d", { source = path, mode = -1 }),
        item("/a", { content = "known" }), item("/empty", { content = "" })).digest)
      assert.not_equal(staged.digest, stage(item("/a", { content = "known" })).digest)
    end)

    it("are hashed once, as long as they are what they were", function()
      serve ""
      local path = scratch.file("content\n")
      scratch.sh(("touch -d '2001-02-03' %s"):format(scratch.quote(path)))
      local real, hashed = core.sha256_file, 0
      core.sha256_file = function(...) -- luacheck: ignore 122
        hashed = hashed + 1
        return real(...)
      end
      finally(function() core.sha256_file = real end) -- luacheck: ignore 122
      stage(item("/a", { source = path }))
      stage(item("/a", { source = path })) -- it was made just now: it may be made again within a tick of the clock
      assert.equal(2, hashed)
      bough.sleep(2.1)
      stage(item("/a", { source = path }))
      stage(item("/b", { source = path }))
      assert.equal(3, hashed)
      scratch.sh(("printf CONTENT >%s; touch -d '2001-02-03' %s"):format(scratch.quote(path), scratch.quote(path)))
      assert.equal(core.sha256 "CONTENT", handle:upload({ kind = "file", source = path }):wait().sha256)
    end)

    it("are told by their names where something is wrong with them", function()
      serve [[most = 10]]
      local path = scratch.file("more than ten bytes")
      local problem = raises("resource", stage, item("/a", { source = path }))
      assert.match(path, problem.message, 1, true)
      assert.match("19 bytes", problem.message, 1, true)
      problem = raises("resource", stage, item("/inline", { content = "more than ten bytes" }))
      assert.match("/inline", problem.message, 1, true)
      assert.match(path .. "x", raises("not_found", stage, item("/a", { source = path .. "x" })).message, 1, true)
      raises("not_found", stage, item("/a", { digest = core.sha256 "nobody has this" }))
      raises("invalid", stage, item("/a", { source = scratch.dir() }))
    end)

    it("that change while they are sent are noticed", function()
      serve [[sent = "something else"]]
      local path = scratch.file("content")
      local problem = raises("io", stage, item("/a", { source = path }))
      assert.match(path, problem.message, 1, true)
      assert.match("changed", problem.message, 1, true)
      raises("protocol", stage, item("/a", { content = "content" }))
    end)

    it("are refused before anything is sent where the service cannot be told", function()
      serve ""
      local function dir(path, more) return item(path, setmetatable({ kind = "dir" }, { __pairs = function()
        local all = { kind = "dir", mode = 493 }
        for name, value in pairs(more or {}) do all[name] = value end
        return next, all
      end })) end
      for path, items in pairs {
        ["/link"] = { item("/link", { kind = "symlink", target = "/etc" }) },
        ["/dated"] = { item("/dated", { content = "", mtime = 1000 }) },
        ["/d/empty"] = { dir "/d", dir "/d/empty" },
        ["/owned"] = { dir("/owned", { uid = 5 }), item("/owned/x", { content = "" }) },
        ["/open"] = { dir("/open", { mode = 511 }), item("/open/x", { content = "" }) },
        ["/latin\xe9"] = { item("/latin\xe9", { content = "" }) },
      } do
        local problem = raises("unsupported", handle.stage, handle, items)
        assert.match(path:gsub("\xe9", ""), problem.message, 1, true)
      end
      assert.equal(0, requests())
      -- directories with files in them come by themselves
      stage(dir("/d", { mode = 509 }), dir("/d/e", { mode = 448 }), item("/d/e/x", { content = "" }))
    end)

    it("go up by themselves, and are known then", function()
      serve ""
      local events = {}
      local path = scratch.file(("x"):rep(1 << 20))
      local uploaded = box.files:upload(path, { on_progress = function(event) events[#events + 1] = event end })
      assert.equal(core.sha256(("x"):rep(1 << 20)), uploaded.sha256)
      assert.equal(1 << 20, uploaded.size)
      assert.is_true(uploaded.new)
      assert.equal(1 << 20, events[#events].done)
      assert.is_false(box.files:upload(path).new)
      assert.is_true(box.files:exists(uploaded.sha256))
      assert.is_false(box.files:exists(core.sha256 "nothing"))
      assert.equal(1, asked "POST")
    end)

    it("go up several at a time, and stop when one fails", function()
      stub:handle [[return function(request, state)
        if request.method == "GET" then return { status = 404, json = { error = "no" } } end
        if request.body == "bad" then return { status = 403, json = { error = "no more" } } end
        return { hang = true }
      end]]
      local problem = raises("denied", stage, item("/1", { content = "1" }), item("/2", { content = "2" }),
        item("/3", { content = "bad" }), item("/4", { content = "4" }), item("/5", { content = "5" }))
      assert.match("no more", problem.message, 1, true)
      stub:wait [[for _, entry in ipairs((...)) do
        if entry.method == "POST" and not entry.done and not entry.aborted then return false end
      end return true]]
      assert.is_true(asked "POST" <= 4)
    end)

    it("are given up when the job is closed", function()
      stub:handle [[return function(request)
        if request.method == "GET" then return { status = 404, json = { error = "no" } } end
        return { hang = true }
      end]]
      local job = handle:stage { item("/1", { content = "1" }) }
      stub:wait [[for _, entry in ipairs((...)) do if entry.method == "POST" then return true end end]]
      assert.is_nil(job:wait(0))
      job:close()
      raises("cancelled", job.wait, job)
      stub:wait [[for _, entry in ipairs((...)) do if entry.aborted then return true end end]]
      local early = handle:stage { item("/1", { content = "1" }) }
      early:close()
      raises("cancelled", early.wait, early)
    end)
  end)

  local kinds = { ["follows links"] = "links = true", ["follows no links, and compresses"] = "gzip = true" }
  for name, settings in pairs(kinds) do
    describe("that " .. name .. ", images are read", function()
      local base

      before_each(function()
        serve_tree([[{
          ["/etc/passwd"] = "root:x:0:0\n",
          ["/t/file"] = { kind = "file", content = "abc\n", mode = 2537, nlink = 2, uid = 3 },
          ["/t/binary"] = "a\0\255", ["/t/empty"] = "", ["/t/dir/in"] = "in\n", ["/t/fifo"] = { kind = "fifo" },
          ["/t/abs"] = { kind = "symlink", target = "/etc/passwd" },
          ["/t/up"] = { kind = "symlink", target = "../../../etc/passwd" },
          ["/t/todir"] = { kind = "symlink", target = "dir" }, ["/t/loop"] = { kind = "symlink", target = "loop" },
          ["/t/dangling"] = { kind = "symlink", target = "nowhere" }, ["/t/two words+%&#?"] = "odd",
          ["/t/node"] = { kind = "other" }, ["/t/old"] = { kind = "file", content = "", mtime = 981173106 },
        }]], settings)
        base = box.images:get "base"
      end)

      it("as listings", function()
        assert.same({ "etc", "t" }, fixture.names(base, "/"))
        local by_name = {}
        for _, entry in ipairs(base:ls "t/") do by_name[entry.name] = entry end
        assert.equal("4751", by_name.file.mode_string)
        assert.equal(2, by_name.file.nlink)
        assert.equal(3, by_name.file.uid)
        assert.equal(981173106, by_name.old.mtime)
        assert.equal("/etc/passwd", by_name.abs.symlink_to)
        assert.is_nil(by_name.file.symlink_to)
        for path, kind in pairs { fifo = "fifo", node = "other", dir = "dir", loop = "symlink", binary = "file" } do
          assert.equal(kind, by_name[path].kind)
        end
        assert.same({ "in" }, fixture.names(base, "/t/todir"))
        assert.equal("abc\n", by_name.file:read())
      end)

      it("once", function()
        base:ls "/t"
        local before = requests()
        base:ls "/t"
        assert.equal("abc\n", base:stat("/t/file"):read())
        assert.equal(before + 1, requests())
      end)

      it("whole, in chunks, and along links", function()
        assert.equal("abc\n", base:read "t/file")
        assert.equal("a\0\255", base:read "/t/binary")
        assert.equal("", base:read "/t/empty")
        assert.equal("odd", base:read "/t/two words+%&#?")
        for _, path in ipairs { "/t/abs", "/t/up", "/../../etc/passwd", "/t/todir/../../etc//passwd", "/t/./abs" } do
          assert.equal("root:x:0:0\n", base:read(path))
        end
        assert.equal("in\n", base:read "/t/todir/in")
        local chunks = {}
        for chunk in base:stream "/t/todir/in" do chunks[#chunks + 1] = chunk end
        assert.same({ "in\n" }, chunks)
        assert.equal("file", base:stat("/t/abs").kind)
        assert.equal("dir", base:stat("/t/todir").kind)
        assert.equal("dir", base:stat("/").kind)
      end)

      it("not where there is nothing to read, told in one line with the path", function()
        for path, kind in pairs {
          ["/t/nothing"] = "not_found", ["/t/dangling"] = "not_found", ["/t/file/below"] = "not_found",
          ["/t/dir"] = "invalid", ["/t/fifo"] = "invalid", ["/t/loop"] = "invalid", ["/"] = "invalid",
        } do
          for _, method in ipairs { "read", "stream" } do
            assert.match(path, raises(kind, base[method], base, path).message, 1, true)
          end
        end
        raises("not_found", base.ls, base, "/t/nothing")
        raises("invalid", base.ls, base, "/t/file")
        raises("invalid", base.walk, base, "/t/file")
        raises("not_found", base.stat, base, "/t/nothing")
        raises("not_found", handle.read, handle, NOWHERE, "/x")
        raises("not_found", handle.list_dir, handle, NOWHERE, "/")
      end)

      it("by walking, finding and globbing", function()
        local seen = {}
        for entry in base:walk "/t" do seen[#seen + 1] = entry.full_path end
        assert.same({ "/t/abs", "/t/binary", "/t/dangling", "/t/dir", "/t/dir/in", "/t/empty", "/t/fifo", "/t/file",
          "/t/loop", "/t/node", "/t/old", "/t/todir", "/t/two words+%&#?", "/t/up" }, seen)
        seen = {}
        for entry in base:entries "/" do seen[#seen + 1] = entry.full_path end
        assert.same({ "/etc", "/t" }, seen)
        assert.same({ "/t/dir/in" }, base:glob "/t/**/in")
        assert.same({ "/etc/passwd" }, base:glob "/e*/pass*")
        assert.same({ "/t/dir/" }, { base:glob("/t/d*/")[1] .. "/" })
        assert.equal("/t/fifo", base:find({ kind = "fifo" })[1].full_path)
        assert.equal("/t/dir/in", base:find({ name = "i?", path = "/t" })[1].full_path)
        assert.equal("/t/file", base:find({ path = "/t/file" })[1].full_path)
        local step, _, _, early <close> = base:walk "/" -- luacheck: ignore 211
        assert.equal("/etc", step().full_path)
      end)

      it("by download, file and tree, whole or not at all", function()
        local dir = scratch.dir()
        assert.equal(dir .. "/file", base:download("/t/file", dir))
        assert.equal("abc\n", fixture.read_file(dir .. "/file"))
        base:download("/t/abs", dir .. "/passwd")
        assert.equal("root:x:0:0\n", fixture.read_file(dir .. "/passwd"))
        local to, result = base:download("/t/todir", dir .. "/tree")
        assert.equal("in\n", fixture.read_file(to .. "/in"))
        assert.is_true(result.files > 0)
        base:download("/", dir .. "/all")
        assert.equal("in\n", fixture.read_file(dir .. "/all/t/dir/in"))
        assert.equal("root:x:0:0\n", fixture.read_file(dir .. "/all/etc/passwd"))
        raises("not_found", base.download, base, "/t/nothing", dir .. "/other")
        assert.equal("all\nfile\npasswd\ntree\n", scratch.sh("ls -A " .. dir))
        local size = 0
        for chunk in base:archive "/etc" do size = size + #chunk end
        assert.is_true(size >= 1024)
      end)

      it("by searching", function()
        local found = base:grep("root", { path = { "/etc", "/t" } })
        assert.equal("/etc/passwd:1: root:x:0:0", tostring(found.matches[1]))
        assert.same({ { 1, 4 } }, found.matches[1].submatches)
        assert.is_false(found.truncated)
        raises("not_found", base.grep, base, "x", { path = "/nothing" })
        raises("invalid", base.grep, base, "(")
      end)
    end)
  end

  it("searches as it is told, and the records come in the order of a walk", function()
    serve_tree [[{ ["/b/x.c"] = "int a;\nint b;\n\255\n", ["/a/y.c"] = "int c;", ["/a/deep/z.h"] = "int d;\n",
      ["/a/deep/z.c"] = "int e;\n", ["/a-b"] = "int f;\n" }]]
    local base = box.images:get "base"
    local function lines(found)
      local all = {}
      for i, match in ipairs(found.matches) do all[i] = match.path .. ":" .. match.line_number end
      return all
    end
    local found = base:grep "int"
    assert.same({ "/a/deep/z.c:1", "/a/deep/z.h:1", "/a/y.c:1", "/a-b:1", "/b/x.c:1", "/b/x.c:2" }, lines(found))
    assert.equal(6, found.matches[1].length)
    assert.is_nil(found.matches[1].unended)
    assert.is_true(found.matches[3].unended)
    assert.equal(7, found.matches[6].offset)
    assert.is_nil(found.files)
    -- names go to the service, paths are looked at here
    assert.same({ "/a/deep/z.h:1" }, lines(base:grep("int", { glob = { "/a/deep/*", "!*.c" } })))
    assert.same({ "/a/deep/z.c:1", "/a/deep/z.h:1" }, lines(base:grep("int", { path = "/a", glob = "deep/**" })))
    assert.same({ "/a/y.c:1" }, lines(base:grep("int", { path = "/a", glob = "!/deep" })))
    found = base:grep("int", { glob = "/*/*.c", max_total = 2 })
    assert.same({ "/a/y.c:1", "/b/x.c:1" }, lines(found))
    assert.is_true(found.truncated)
    assert.same({ "/a/y.c:1", "/b/x.c:1" }, lines(base:grep("int", { glob = "/*/*.c", max_count = 1 })))
    found = base:grep("int", { max_total = 2 })
    assert.equal(2, #found.matches)
    assert.is_true(found.truncated)
    base:grep({ "a.b", "c" }, {
      fixed = true, case = "smart", before = 1, after = 2, glob = { "*.c", "!x*" }, max_count = 3,
    })
    local log = stub:log()
    local query = log[#log].query
    for _, part in ipairs { "pattern=a%5C.b", "pattern=c", "case=insensitive", "before=1", "after=2", "glob=%2A.c",
      "glob=%21x%2A", "max_count=3", "max_total=10000" } do
      assert.match(part, query, 1, true)
    end
    raises("unsupported", base.grep, base, "\xff")
  end)

  it("tells what differs between images", function()
    serve(([[
      images = {
        { uuid = uuid(1), at = 1788000020, operation = uuid(101) }, { uuid = %q, tag = "base", at = 1788000010 },
      },
      operations = { [uuid(101)] = ran(1, %q) },
      trees = {
        [%q] = { ["/same"] = { kind = "file", content = "one", mtime = 1000 }, ["/young"] = "one",
          ["/touched"] = { kind = "file", content = "x", mtime = 5 }, ["/gone/x"] = "x",
          ["/mode"] = { kind = "file", content = "m", mode = 420 },
          ["/link"] = { kind = "symlink", target = "a" }, ["/was"] = "file", ["/size"] = "1", ["/d/e"] = "",
          ["/two"] = { kind = "file", content = "ab", mode = 420 } },
        [uuid(1)] = { ["/same"] = { kind = "file", content = "two", mtime = 1000 }, ["/young"] = "two",
          ["/touched"] = { kind = "file", content = "x", mtime = 6 },
          ["/mode"] = { kind = "file", content = "m", mode = 493 },
          ["/link"] = { kind = "symlink", target = "b" }, ["/was/dir"] = "x", ["/size"] = "12", ["/d/e"] = "",
          ["/two"] = { kind = "file", content = "ba", mode = 493, uid = 1 } },
      }]]):format(BASE, BASE, BASE))
    local image = box.images:get(uuid(1))
    -- "/same" is old, and of one size and time: it is not read
    local expected = [[
D /gone
D /gone/x
C /link (content, target)
C /mode (mode)
C /size (content)
C /two (content, mode, owner)
C /was (type, mode)
A /was/dir
C /young (content)
]]
    assert.equal(expected, image:diff("base"):text())
    assert.equal("", image:diff(image):text())
    assert.equal(0, asked "download?path=%2Fsame")
    local change = image:diff("base").changed[1]
    assert.equal("symlink", change.kind)
    local look <close> = handle:look(uuid(1), { "diff" }, { other = NOWHERE })
    raises("not_found", look.next, look)
  end)

  it("walks large trees, many directories at a time, each once and in order", function()
    serve(([[images = { { uuid = %q, tag = "base", at = 1 } }, trees = { [%q] = tree }]]):format(BASE, BASE), [[
      local tree = {}
      for i = 1, 40 do
        for j = 1, 10 do
          for k = 1, 5 do tree[("/d%02d/e%02d/f%d"):format(i, j, k)] = "" end
        end
      end]])
    local base = box.images:get "base"
    local before, count = nil, 0
    for entry in base:walk "/" do
      local key = entry.full_path:gsub("/", "\0")
      assert.is_true(before == nil or before < key)
      before, count = key, count + 1
    end
    assert.equal(40 + 400 + 2000, count)
    assert.equal(441, asked "/list")
    local connections = {}
    for _, entry in ipairs(stub:log()) do connections[entry.connection] = true end
    local used = 0
    for _ in pairs(connections) do used = used + 1 end
    assert.is_true(used > 1 and used < 120, used .. " connections")
    -- what fails below is raised, what is left early asks for no more
    local seen = 0
    for _ in base:walk "/" do
      seen = seen + 1
      if seen == 5 then break end
    end
    -- where ordinary tasks stand still
    local listed
    local names = { 3, 1, 2 }
    table.sort(names, function(a, b)
      listed = listed or #base:find { kind = "dir", path = "/d01" }
      return a < b
    end)
    assert.equal(10, listed)
  end)

  it("passes over nothing that is broken", function()
    local tree = [[{ ["/a/b"] = "content", ["/c"] = "x" }]]
    serve_tree(tree, "cut = true")
    local base = box.images:get "base"
    raises("transport", base.download, base, "/a", scratch.dir() .. "/a")
    serve_tree(tree, [[before_archive = "no archive at all" .. ("x"):rep(2000)]])
    assert.has_error(function() base:download("/a", scratch.dir() .. "/a") end)
    -- an archive that leads out of where it is unpacked
    local victim = scratch.dir()
    scratch.file("precious", victim .. "/file")
    serve_tree(tree, ([[before_archive = require "spec.support.fault_tar".entry { name = "a", type = "2", link = %q }]])
      :format(victim))
    local out = scratch.dir()
    assert.has_error(function() base:download("/a", out .. "/a") end)
    assert.equal("precious", fixture.read_file(victim .. "/file"))
    assert.equal("", scratch.sh("ls -A " .. out))
    stub:handle [[return function() return { body = "x", length = 100, cut = true } end]]
    raises("transport", handle.read, handle, BASE, "/x")
    for _, body in ipairs { '{"path":"/"}', '{"path":"/","files":[{"path":"../x"}]}', '{"files":[7]}', "[]", "?" } do
      stub:handle(("return function() return { body = %q } end"):format(body))
      raises("protocol", handle.list_dir, handle, NOWHERE, "/")
    end
    stub:handle [[return function() return { json = { matches = { { path = 7 } } } } end]]
    raises("protocol", base.grep, base, "x")
    stub:handle [[return function() return { status = 403, json = { error = "Insufficient permissions: list" } } end]]
    for _, call in ipairs {
      function() handle:list_dir(NOWHERE, "/") end, function() handle:read(BASE, "/x") end,
      function() handle:list {} end, function() handle:resolve(BASE) end,
      function() handle:tag(BASE, "x") end, function() handle:has_file(core.sha256 "") end,
    } do
      assert.match("denied", raises("denied", call).kind)
    end
  end)
end)

describe("over bough serve", function()
  local box, base, image

  setup(function()
    box = serve_process.start():open()
    base = box.images:use "busybox"
    image = base:run [[
      mkdir -p /t/a/deep /t/b; cd /t; printf 'int x;\nint y;\n' >a/x.c; printf 'int z' >a/deep/z.c; echo none >b/n.txt
      ln -s a/deep link; mkfifo b/fifo; chmod 4755 a/x.c; chown 3:4 b; rm /etc/group; echo more >>/etc/passwd]]
  end)

  teardown(function()
    box:close()
    serve_process.stop_all()
  end)

  local function paths(entries)
    local all = {}
    for i, entry in ipairs(entries) do all[i] = entry.full_path end
    return all
  end

  it("trees are walked, globbed and searched", function()
    local seen = {}
    for entry in image:walk "/t" do seen[#seen + 1] = entry.full_path end
    local expected = { "/t/a", "/t/a/deep", "/t/a/deep/z.c", "/t/a/x.c", "/t/b", "/t/b/fifo", "/t/b/n.txt", "/t/link" }
    assert.same(expected, seen)
    assert.same({ "/t/a/deep/z.c", "/t/a/x.c" }, image:glob "/t/**/*.c")
    assert.same({ "/t/b/fifo" }, paths(image:find { path = "/t", kind = "fifo" }))
    assert.same({ "/t/a/x.c" }, paths(image:find { path = "/t", name = "*.c", larger = 10 }))
    assert.equal(3, image:stat("/t/b").uid)
    assert.equal(4, image:stat("/t/b").gid)
    assert.equal("4755", image:stat("/t/a/x.c").mode_string)
    assert.equal("/t/link/z.c", image:ls("/t/link")[1].full_path)
    local found = image:grep("int [xz]", { path = "/t" })
    assert.equal("/t/a/deep/z.c:1: int z", tostring(found.matches[1]))
    assert.equal("/t/a/x.c:1: int x;", tostring(found.matches[2]))
    assert.equal(2, #found.matches)
    assert.is_true(found.matches[1].unended)
    assert.same({ { 1, 5 } }, found.matches[2].submatches)
    assert.equal(1, #image:grep("int", { path = "/t", glob = "/a/*.c", max_count = 1 }).matches)
    assert.equal(2, #image:grep(".", { path = "/t/a/x.c", fixed = false }).matches)
    assert.equal(0, #image:grep(".", { path = "/t/a/x.c", fixed = true }).matches)
  end)

  it("images are compared", function()
    assert.equal("D /etc/group\nC /etc/passwd (content)\nA /t\n",
      image:diff(base):text():gsub("A /t/[^\n]*\n", ""))
    local other = base:run "echo 1 >/same"
    assert.equal("C /same (content)\n", other:run("echo 2 >/same"):diff(other):text())
    assert.equal("", other:run("touch /same"):diff(other):text())
  end)

  it("files and trees come out, and go in", function()
    local dir = scratch.dir()
    local tree, result = image:download("/t", dir .. "/tree")
    assert.equal("int z", fixture.read_file(tree .. "/a/deep/z.c"))
    assert.equal("a/deep\n", scratch.sh("readlink " .. tree .. "/link"))
    assert.is_true(result.files >= 7)
    image:download("/t/link", dir .. "/link")
    assert.equal("int z", fixture.read_file(dir .. "/link/z.c"))
    assert.equal("link\ntree\n", scratch.sh("ls -A " .. dir))
    local parts = {}
    for piece in image:archive "/t/a" do parts[#parts + 1] = piece end
    local file = io.open(dir .. "/a.tar", "wb")
    file:write(table.concat(parts))
    file:close()
    assert.match("t/a/deep/z.c\n", scratch.sh(("tar -tf %s/a.tar"):format(dir)), 1, true)
    local put = base:apply_files { ["/in"] = bough.dir(tree, { exclude = { "link", "fifo" } }), ["/x"] = bough.bytes(
      "x", { mode = "0700", uid = 5 }) }
    assert.equal("files", put.origin)
    assert.equal("int z", put:read "/in/a/deep/z.c")
    assert.equal("0700", put:stat("/x").mode_string)
    assert.equal(5, put:stat("/x").uid)
    local again = box.images:get(put.uuid)
    assert.equal("files", again.origin)
    assert.equal(base.uuid, again.parent_uuid)
    assert.match("^files: /in/a/deep/z.c, ", again.command)
    assert.match("KiB  files: /in/a/deep/z.c, ", box:tree { root = base }, 1, true)
  end)
end)
